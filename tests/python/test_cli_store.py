# SPDX-License-Identifier: Apache-2.0
"""Spools and datasets on an object store: S3 as moto serves it."""

import http.client
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import lance
import pytest
from cli_support import Cli, write_source
from moto.server import ThreadedMotoServer

SECRET = "wJalrXUtnFEMI-not-for-logs"
WRITE = {"operation": "write", "sources": ["source.parquet"], "max_rows_per_file": 100}


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "allow_http": "true",
        "aws_endpoint": f"http://{host}:{port}",
        "aws_access_key_id": "AKIAEXAMPLE",
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
    }
    server.stop()


@pytest.fixture
def bucket(options: dict[str, str]) -> Any:
    s3 = boto3.resource(
        "s3",
        endpoint_url=options["aws_endpoint"],
        aws_access_key_id=options["aws_access_key_id"],
        aws_secret_access_key=options["aws_secret_access_key"],
        region_name=options["aws_region"],
    )
    return s3.create_bucket(Bucket=f"bucket-{uuid.uuid4().hex}")


@pytest.fixture
def cli(tmp_path: Path, options: dict[str, str]) -> Cli:
    write_source(tmp_path)
    (tmp_path / "options.json").write_text(json.dumps(options))
    return Cli(tmp_path)


S3 = ["--storage-options", "options.json"]
SPOOL_ON_S3 = ["--spool-storage-options", "options.json"]


def test_spool_and_dataset_on_the_store(cli: Cli, bucket: Any, options: dict[str, str]) -> None:
    spool, uri = f"s3://{bucket.name}/jobs/spool", f"s3://{bucket.name}/d.lance"
    (cli.folder / "spec.json").write_text(json.dumps(WRITE | {"uri": uri}))
    racers = [cli.start("prepare", "spec.json", "--spool", spool, *S3) for _ in range(3)]
    assert sorted((racer.communicate(), racer.returncode)[1] for racer in racers) == [0, 2, 2]

    shards = [cli.start("run", spool, "--shard", f"{i}/2", *S3, "--json") for i in range(2)]
    for shard in shards:
        out, err = shard.communicate()
        assert shard.returncode == 0 and json.loads(out)["tasks"] == 5, err
    state = cli.json("inspect", spool, *S3)
    assert (state["state"], state["attempts"]) == ("ready to commit", {"ok": 10, "failed": 0})
    printed = cli("commit", spool, *S3)
    assert cli.json("commit", spool, *S3)["already_committed"] is True
    dataset = lance.dataset(uri, storage_options=options)
    assert dataset.count_rows() == 1000
    shape = cli.json("inspect", uri, *S3)
    assert (shape["rows"], shape["fragments"]["count"]) == (1000, 10)

    # The credentials went through all of it and stayed nowhere.
    assert SECRET not in printed.stdout + printed.stderr
    for item in bucket.objects.filter(Prefix="jobs/"):
        assert SECRET.encode() not in item.get()["Body"].read(), item.key


def test_spool_on_the_store_dataset_here(cli: Cli, bucket: Any) -> None:
    spool = f"s3://{bucket.name}/spool"
    write = ["write", "source.parquet", "--to", "d.lance", "--spool", spool, *SPOOL_ON_S3]
    assert cli.json(*write)["rows"] == 1000
    assert cli.json(*write)["already_committed"] is True
    assert cli.json("inspect", spool, *SPOOL_ON_S3)["state"] == "committed"
    changed = cli.error(*write, "--max-rows-per-file", "9", status=2)
    assert "max_rows_per_file" in changed["message"]


def test_spool_here_dataset_on_the_store(cli: Cli, bucket: Any, options: dict[str, str]) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    cli.folder.joinpath("spec.json").write_text(json.dumps(WRITE | {"uri": uri}))
    cli("prepare", "spec.json", "--spool", "spool", *S3)
    cli("run", "spool", *S3)
    assert len(list(bucket.objects.filter(Prefix="d.lance/data/"))) == 10
    assert cli.json("abort", "spool", *S3)["files_removed"] == 10
    assert not list(bucket.objects.filter(Prefix="d.lance/"))


def test_missing_places(cli: Cli, bucket: Any) -> None:
    error = cli.error("plan", f"s3://{bucket.name}/nowhere", *S3, status=2)
    assert error["code"] == "NOT_FOUND" and "no spool" in error["message"]
    error = cli.error("inspect", f"s3://{bucket.name}/nowhere", *S3, status=2)
    assert error["code"] == "NOT_FOUND" and "neither" in error["message"]
    error = cli.error("plan", "s3://no-such-bucket-here/x", *S3, status=2)
    assert error["code"] == "NOT_FOUND" and SECRET not in error["message"]


class Proxy:
    """Passes requests on to an endpoint. `lose` set: a manifest is put, and from then on nothing of
    the dataset's versions is answered, until `lost` is cleared."""

    def __init__(self, endpoint: str) -> None:
        self.lose = self.lost = False
        target, proxy = endpoint.removeprefix("http://"), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                versions = "_versions" in self.path
                if proxy.lost and versions:
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection(target)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                if proxy.lose and versions and self.command == "PUT":
                    proxy.lost = self.close_connection = True
                    return
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        self.send_header(name, value)
                size = response.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", size or str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def proxy(options: dict[str, str]) -> Iterator[Proxy]:
    proxy = Proxy(options["aws_endpoint"])
    yield proxy
    proxy.close()


def test_a_commit_of_unknown_outcome_keeps_the_job(
    cli: Cli, bucket: Any, options: dict[str, str], proxy: Proxy
) -> None:
    """The manifest is put, its answer lost, and the store gone: nothing may be removed."""
    uri = f"s3://{bucket.name}/d.lance"
    through = options | {"aws_endpoint": proxy.endpoint, "client_max_retries": "1"}
    (cli.folder / "proxy.json").write_text(json.dumps(through | {"client_retry_timeout": "3"}))
    proxy.lose = True
    write = ["write", "source.parquet", "--to", uri, "--retries", 0]
    answer = cli.json(*write, "--storage-options", "proxy.json", status=75)
    assert answer["error"]["code"] == "COMMIT_UNKNOWN" and "aborted" not in answer
    (kept,) = [path.name for path in cli.folder.glob("lance-tasks-*")]
    assert f"lance-tasks commit {kept}" in answer["error"]["hint"]
    assert cli.json("commit", kept, *S3)["already_committed"] is True
    assert lance.dataset(uri, storage_options=options).count_rows() == 1000
