# SPDX-License-Identifier: Apache-2.0
"""Bad input of each kind: exit codes by error class, one JSON object, words that name the thing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from cli_support import Cli, write_source

SECRET = "wJalrXUtnFEMI-not-for-logs"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    write_source(tmp_path)
    (tmp_path / "secret.json").write_text(f'{{"aws_secret_access_key": "{SECRET}", }}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "unknown.json").write_text('{"operation": "fly", "uri": "x"}')
    cli = Cli(tmp_path)
    cli.prepare(
        operation="write", uri="out.lance", sources=["source.parquet"], max_rows_per_file=100
    )
    return cli


INDEX = ["index", "d.lance", "--column", "id", "--type", "btree"]
WRITE = ["write", "source.parquet", "--to", "o.lance"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["plan", "nowhere"], "NOT_FOUND", ["nowhere", "no spool"]),
        (["run", "source.parquet"], "NOT_FOUND", ["source.parquet", "no spool"]),
        (["commit", ""], "INVALID_ARGUMENT", ["empty"]),
        (["run", "spool", "--shard", "2/2"], "INVALID_ARGUMENT", ["2/2"]),
        (["run", "spool", "--shard", "x"], "INVALID_ARGUMENT", ["'x'"]),
        (["run", "spool", "--jobs", "5000"], "INVALID_ARGUMENT", ["5000"]),
        (["run", "spool", "--jobs", "many"], "INVALID_ARGUMENT", ["many"]),
        (["run", "spool", "--speed", "9"], "INVALID_ARGUMENT", ["--speed"]),
        (["fly"], "INVALID_ARGUMENT", ["fly"]),
        (["prepare", "missing.json", "--spool", "x"], "NOT_FOUND", ["missing.json"]),
        (["prepare", "list.json", "--spool", "x"], "DECODE", ["not a descriptor"]),
        (["prepare", "unknown.json", "--spool", "x"], "INVALID_ARGUMENT", ["fly", "compact"]),
        (["prepare", "spec.json", "--spool", "x", "--set", "a"], "INVALID_ARGUMENT", ["KEY=VALUE"]),
        (["prepare", "spec.json", "--spool", "x", "--set", "rows=1"], "INVALID_ARGUMENT", ["rows"]),
        (["prepare", "spec.json", "--spool", "s3://k:v@b/x"], "INVALID_ARGUMENT", ["credentials"]),
        (["prepare", "spec.json", "--spool", "source.parquet/x"], "INVALID_ARGUMENT", ["source"]),
        (["plan", "spool", "--storage-options", "list.json"], "INVALID_ARGUMENT", ["list.json"]),
        (["plan", "spool", "--storage-options", "secret.json"], "INVALID_ARGUMENT", ["secret"]),
        (["inspect", "nowhere"], "NOT_FOUND", ["nowhere"]),
        (["inspect", "source.parquet"], "NOT_FOUND", ["source.parquet"]),
        (["write", "--to", "o.lance"], "INVALID_ARGUMENT", ["no source"]),
        (["write", "source.parquet"], "INVALID_ARGUMENT", ["--to"]),
        (["write", "gone.parquet", "--to", "o.lance"], "NOT_FOUND", ["gone.parquet"]),
        ([*WRITE, "--mode", "upsert"], "INVALID_ARGUMENT", ["upsert"]),
        ([*WRITE, "--mode", "append"], "NOT_FOUND", ["o.lance"]),
        ([*WRITE, "--max-rows-per-file", "ten"], "INVALID_ARGUMENT", ["max-rows-per-file", "ten"]),
        ([*WRITE, "--max-rows-per-file=-1"], "INVALID_ARGUMENT", ["max_rows_per_file"]),
        ([*WRITE, "--set", "params={"], "INVALID_ARGUMENT", ["params"]),
        ([*WRITE, "--spec", "unknown.json"], "INVALID_ARGUMENT", ["fly", "write"]),
        ([*WRITE, "--spec", "list.json"], "INVALID_ARGUMENT", ["object"]),
        ([*WRITE, "--transaction-properties", "a"], "INVALID_ARGUMENT", ["NAME=VALUE"]),
        (["compact"], "INVALID_ARGUMENT", ["URI"]),
        (["compact", "nowhere.lance"], "NOT_FOUND", ["nowhere.lance"]),
        (["index", "d.lance", "--type", "btree"], "INVALID_ARGUMENT", ["column"]),
        (["index", "d.lance", "--column", "id"], "INVALID_ARGUMENT", ["index_type"]),
        ([*INDEX[:-1], "fastest"], "NOT_SUPPORTED", ["fastest"]),
        ([*INDEX, "--column", "nope"], "INVALID_ARGUMENT", ["--column"]),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, args: list[str], code: str, words: list[str]) -> None:
    lance.write_dataset(pa.table({"id": range(10)}), tmp_path / "d.lance")
    refused = cli(*args, "--json", status=2)
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["class"]) == (code, "invalid"), error
    # For people, the same words.
    plain = cli(*args, status=2)
    assert plain.stdout == ""
    for word in words:
        assert word in error["message"] and word in plain.stderr, (word, error, plain.stderr)
    assert SECRET not in refused.stdout + refused.stderr + plain.stderr
    assert not (tmp_path / "x").exists() and not (tmp_path / "o.lance").exists()


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("job.json", b"{}", "INVALID_ARGUMENT"),
        ("job.json", b"\x00\x01", "DECODE"),
        ("tasks/0.arrow", b"", "DECODE"),
        ("tasks/0.arrow", b"no arrow at all", "DECODE"),
        ("results/strange.arrow", b"x", "DECODE"),
        (f"results/0.9.ok.{'0' * 32}.arrow", b"x", "DECODE"),
        ("aborted.json", b"{", "DECODE"),
    ],
)
def test_a_damaged_spool(cli: Cli, tmp_path: Path, file: str, content: bytes, code: str) -> None:
    cli("run", "spool")
    (tmp_path / "spool" / file).write_bytes(content)
    error = cli.error("inspect", "spool", status=2)
    assert error["code"] == code
    assert file.split("/")[-1] in error["message"]


def test_replan_conflict_and_fatal(cli: Cli, tmp_path: Path) -> None:
    """3: not every task has a result. 4: another job was quicker. 70: the files have gone."""
    cli("plan", "spool")
    refused = cli("commit", "spool", status=3)
    assert "INCOMPLETE (replan)" in refused.stderr and "hint: run" in refused.stderr
    cli("run", "spool")
    cli("write", "source.parquet", "--to", "out.lance")
    assert cli.error("commit", "spool", status=4)["class"] == "conflict"

    other = {"operation": "write", "uri": "out.lance", "mode": "append"}
    cli.prepare("other", **other, sources=["source.parquet"])
    cli("run", "other")
    cli("abort", "other")
    assert cli.error("commit", "other", status=70)["class"] == "fatal"
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 1000


@pytest.fixture
def forbidding() -> Iterator[str]:
    """An endpoint that refuses every request as S3 refuses wrong credentials."""
    body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"

    class Forbid(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        do_GET = do_HEAD = do_PUT = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbid)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_credentials(cli: Cli, tmp_path: Path, forbidding: str) -> None:
    options = {
        "allow_http": "true",
        "aws_endpoint": forbidding,
        "aws_access_key_id": "AKIAEXAMPLE",
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    for args in [("plan", "s3://bucket/spool"), ("compact", "s3://bucket/d.lance")]:
        refused = cli(*args, "--storage-options", "options.json", "--json", status=77)
        error = json.loads(refused.stdout)["error"]
        assert (error["code"], error["class"]) == ("CREDENTIALS", "credentials")
        assert SECRET not in refused.stdout + refused.stderr


def test_help_and_version_are_no_errors(cli: Cli) -> None:
    assert "inspect" in cli("--help").stdout
    assert "--max-rows-per-file" in cli("write", "--help").stdout
    assert cli("--version").stdout.startswith("lance-tasks ")
