# SPDX-License-Identifier: Apache-2.0
"""Object stores on loopback, each started by the tests that need it, and a proxy that breaks one.

S3 is moto (in this process), Azure is Azurite, and s3rver is an S3 without conditional put. The
last two are npm packages (package.json here), installed into the folder `node` of the environment.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import http.server
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlencode

import lance
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from support import WORKER
from werkzeug.serving import make_server

NODE = Path(sys.prefix) / "node"

# Unmistakable, so that a search for them finds every leak and nothing else.
KEY_ID = "AKIALEAKEDKEYID00042"
SECRET = "wJalrXUtnFEMI-not-for-logs"
AZURE_ACCOUNT = "leakaccount"
AZURE_KEY = base64.b64encode(b"an-azure-key-that-may-not-leak-anywhere-at-all").decode()

# A persistent fault is reported after one retry, not after Lance's sixteen.
IMPATIENT = {
    "client_max_retries": "1",
    "lance_aimd_max_retries": "0",
    "client_retry_timeout": "5",
}

_names = itertools.count()


@dataclass(frozen=True)
class Store:
    """A store's address and credentials, as storage options and as environment variables."""

    scheme: str
    address: str
    """`http://host:port`."""
    options: dict[str, str]
    secrets: tuple[str, ...]
    fs: pafs.FileSystem = field(repr=False)
    """Past the library, for a look at what is there."""

    @property
    def environment(self) -> dict[str, str]:
        return {key.upper(): value for key, value in self.options.items()}

    def at(self, address: str) -> dict[str, str]:
        """The storage options to reach this store through another address."""
        return {k: v.replace(self.address, address) for k, v in self.options.items()}

    def bucket(self) -> "Bucket":
        """A new, empty bucket (a container on Azure)."""
        name = f"bucket-{os.getpid()}-{next(_names)}"
        self.fs.create_dir(name)
        return Bucket(self, name)


@dataclass(frozen=True)
class Bucket:
    store: Store
    name: str

    @property
    def options(self) -> dict[str, str]:
        return self.store.options

    def uri(self, path: str = "d.lance") -> str:
        return f"{self.store.scheme}://{self.name}/{path}"

    def files(self, under: str = "") -> dict[str, int]:
        """Every object below a path (relative to it) with its size."""
        root = f"{self.name}/{under}".rstrip("/")
        selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
        return {
            info.path.removeprefix(root + "/"): info.size
            for info in self.store.fs.get_file_info(selector)
            if info.is_file
        }

    def read(self, key: str) -> bytes:
        with self.store.fs.open_input_stream(f"{self.name}/{key}") as stream:
            return stream.read()

    def put(self, key: str, data: bytes) -> None:
        with self.store.fs.open_output_stream(f"{self.name}/{key}") as stream:
            stream.write(data)

    def put_parquet(self, key: str, table: pa.Table) -> str:
        """An object with the table's rows; its URI."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.put(key, sink.getvalue().to_pybytes())
        return self.uri(key)

    def dataset(self, path: str = "d.lance", version: int | None = None):
        return lance.dataset(self.uri(path), version=version, storage_options=self.options)

    def table(self, path: str = "d.lance") -> pa.Table:
        return self.dataset(path).to_table()

    def write(self, table: pa.Table, path: str = "d.lance", **options: object):
        return lance.write_dataset(table, self.uri(path), storage_options=self.options, **options)

    def versions(self, path: str = "d.lance") -> list[int]:
        return [version["version"] for version in self.dataset(path).versions()]

    def unreferenced(self, path: str = "d.lance") -> set[str]:
        """The objects below a dataset's root that no version of it needs."""
        there = set(self.files(path))
        if not any(key.startswith("_versions/") for key in there):
            return there
        kept: set[str] = set()
        for number in self.versions(path):
            dataset = self.dataset(path, number)
            for fragment in dataset.get_fragments():
                kept |= {f"data/{file.path}" for file in fragment.data_files()}
                if (deletions := fragment.metadata.deletion_file) is not None:
                    kept.add(deletions.path(fragment.fragment_id))
            kept |= {f"_indices/{segment}" for segment in segments(dataset)}
        for key in there:
            if key.startswith("_versions/"):
                names = re.findall(rb"\d+-[0-9a-f-]{36}\.txn", self.read(f"{path}/{key}"))
                kept |= {f"_transactions/{name.decode()}" for name in names}
        there = {key for key in there if not key.startswith("_versions/")}
        return {key for key in there if not {key, "/".join(key.split("/")[:2])} & kept}


def segments(dataset) -> set[str]:
    """The uuids of a dataset's index segments."""
    return {str(segment.uuid) for index in dataset.describe_indices() for segment in index.segments}


# Servers


@contextlib.contextmanager
def s3() -> Iterator[Store]:
    """S3 as moto serves it, which honours conditional writes."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    lock = threading.Lock()
    inner = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict, start_response: Callable) -> Iterable[bytes]:
        # moto looks and then writes: between the two, another thread may do the same.
        guard = lock if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext()
        with guard:
            return list(inner(environ, start_response))

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3_store(server.server_port, KEY_ID, SECRET)
    finally:
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def s3rver(folder: Path) -> Iterator[Store]:
    """An S3 that ignores If-None-Match, as old or simple stores do."""
    script = (
        "const S3rver = require('s3rver');"
        "new S3rver({port: 0, address: '127.0.0.1', silent: true, directory: process.argv[1]})"
        ".run((error, at) => { if (error) throw error; console.log(at.port); });"
    )
    with node("-e", script, str(folder), ready=r"^(\d+)$") as port:
        yield s3_store(int(port), "S3RVER", "S3RVER")


def s3_store(port: int, key_id: str, secret: str) -> Store:
    authority = f"127.0.0.1:{port}"
    return Store(
        scheme="s3",
        address=f"http://{authority}",
        options={
            "allow_http": "true",
            "aws_endpoint": f"http://{authority}",
            "aws_access_key_id": key_id,
            "aws_secret_access_key": secret,
            "aws_region": "us-east-1",
        },
        secrets=(key_id, secret),
        fs=pafs.S3FileSystem(
            access_key=key_id,
            secret_key=secret,
            region="us-east-1",
            scheme="http",
            endpoint_override=authority,
            allow_bucket_creation=True,
        ),
    )


@contextlib.contextmanager
def azurite() -> Iterator[Store]:
    """Azure Blob Storage as Azurite serves it."""
    arguments = [
        str(NODE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"),
        *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"),
        *("--blobPort", "0"),
    ]
    accounts = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    with node(*arguments, ready=r"listens on http://127\.0\.0\.1:(\d+)", **accounts) as port:
        authority = f"127.0.0.1:{port}"
        yield Store(
            scheme="az",
            address=f"http://{authority}",
            options={
                "allow_http": "true",
                "azure_storage_endpoint": f"http://{authority}/{AZURE_ACCOUNT}",
                "azure_storage_account_name": AZURE_ACCOUNT,
                "azure_storage_account_key": AZURE_KEY,
            },
            secrets=(AZURE_KEY,),
            fs=pafs.AzureFileSystem(
                AZURE_ACCOUNT,
                account_key=AZURE_KEY,
                blob_storage_authority=authority,
                dfs_storage_authority=authority,
                blob_storage_scheme="http",
                dfs_storage_scheme="http",
            ),
        )


def sas(lifetime: timedelta) -> str:
    """A shared access signature for all of the Azure account, good for so long."""
    expiry = (datetime.now(timezone.utc) + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ")
    query = {"sv": "2020-08-04", "ss": "b", "srt": "sco", "sp": "rwdlac", "se": expiry}
    text = "\n".join([AZURE_ACCOUNT, "rwdlac", "b", "sco", "", expiry, "", "", query["sv"], ""])
    signature = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    return urlencode(query | {"sig": base64.b64encode(signature).decode()})


@contextlib.contextmanager
def node(*arguments: str, ready: str, **environment: str) -> Iterator[str]:
    """A Node.js program until the end of the block; what it says when it is ready."""
    need_npm_packages()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(
        ["node", *arguments], cwd=NODE, env=os.environ | environment, **pipes
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(ready, line.strip()):
                # A full pipe would stop the program.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield found[1]
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.wait()


def need_npm_packages() -> None:
    """Skip where the machine has no npm to install the emulators with; else they must be there."""
    if (NODE / "node_modules" / "azurite").is_dir():
        return
    if shutil.which("npm") is None:
        pytest.skip("the emulator is an npm package, and this machine has no npm")
    raise AssertionError(
        f"npm is here but its packages are not: copy package.json and package-lock.json to {NODE} "
        "and run `npm ci --no-audit --no-fund` there"
    )


# The proxy


@dataclass
class Rule:
    """What becomes of the requests whose method and path (with the query) match.

    Actions:
        fail: answered with `status`, the store never sees it.
        cut: the connection is closed, the store never sees it.
        lose: the store does it, and the connection is closed before the answer.
        half: the store does it, and the connection is closed in the middle of the answer.
        hold: it waits until the proxy recovers; then as `cut`.
        hold_answer: the store does it; its answer waits until the proxy recovers; then as `cut`.
        delay: it waits until the proxy recovers, and goes through then.
        strip: goes through without its `If-None-Match`.
    """

    action: str
    method: str = ""
    path: str = ""
    status: int = 503
    body: str = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
    first: int = 1
    """The first of the matching requests that it applies to, counted from 1."""
    every: int = 1
    """Every how many-th from there on."""
    times: int | None = None
    """How often in all; None: always."""
    when: Callable[[http.client.HTTPMessage], bool] = lambda _: True
    """What else must hold, of the request's headers."""
    seen: int = 0
    hits: int = 0
    hit: threading.Event = field(default_factory=threading.Event)
    """Set once the rule has applied."""

    def applies(self, method: str, target: str, headers: http.client.HTTPMessage) -> bool:
        if not re.search(self.method, method) or not re.search(self.path, target):
            return False
        if not self.when(headers) or (self.times is not None and self.hits >= self.times):
            return False
        self.seen += 1
        if self.seen < self.first or (self.seen - self.first) % self.every:
            return False
        self.hits += 1
        return True


class Proxy:
    """A store whose requests fare as `rules` say; healthy without any."""

    def __init__(self, store: Store) -> None:
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        self.upstream = store.address.removeprefix("http://")
        self.recovered = threading.Event()
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.options = store.at(self.address)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.recover()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, action: str, **what: object) -> Rule:
        rule = Rule(action, **what)
        self.recovered = threading.Event()
        with self._lock:
            self.rules.append(rule)
        return rule

    def recover(self) -> None:
        """From now on the store is healthy; what is held is cut."""
        with self._lock:
            self.rules.clear()
        self.recovered.set()

    def release(self) -> None:
        """What is held is cut, and so is what would be from now on; the rules stay."""
        self.recovered.set()

    @contextlib.contextmanager
    def stalling(self, seconds: float = 20) -> Iterator[None]:
        """The block must end while the store stalls, which it does not for ever: a hang fails."""
        timer = threading.Timer(seconds, self.recover)
        timer.start()
        try:
            yield
            assert not self.recovered.is_set(), "only the store's recovery ended the call"
        finally:
            timer.cancel()

    def rule(self, method: str, target: str, headers: http.client.HTTPMessage) -> Rule | None:
        with self._lock:
            self.requests.append((method, target))
            return next((r for r in self.rules if r.applies(method, target, headers)), None)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                rule = proxy.rule(self.command, self.path, self.headers)
                proxy.serve(self, body, rule)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def serve(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes, rule: Rule | None
    ) -> None:
        action = rule.action if rule else ""
        recovered = self.recovered
        if action == "fail":
            self.answer(request, rule.status, {"x-ms-error-code": "ServerBusy"}, rule.body.encode())
            rule.hit.set()
            return
        if action in ("cut", "hold"):
            rule.hit.set()
            if action == "hold":
                recovered.wait()
            request.close_connection = True
            return
        if action == "delay":
            rule.hit.set()
            recovered.wait()
        headers = dict(request.headers.items())
        if action == "strip":
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        upstream.request(request.command, request.path, body, headers)
        response = upstream.getresponse()
        answer = response.read()
        upstream.close()
        if rule:
            rule.hit.set()
        if action == "hold_answer":
            recovered.wait()
        if action in ("lose", "hold_answer"):
            request.close_connection = True
            return
        length = response.headers.get("Content-Length") if request.command == "HEAD" else None
        half = action == "half"
        self.answer(request, response.status, dict(response.headers.items()), answer, length, half)
        request.close_connection |= half

    @staticmethod
    def answer(
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        body: bytes,
        length: str | None = None,
        half: bool = False,
    ) -> None:
        dropped = {"transfer-encoding", "content-length", "connection", "keep-alive"}
        with contextlib.suppress(OSError):  # a client that was killed
            request.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in dropped:
                    request.send_header(name, value)
            request.send_header("Content-Length", length or str(len(body)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body[: len(body) // 2] if half else body)


def start_worker(
    *arguments: object, storage_options: dict[str, str], **environment: str
) -> subprocess.Popen:
    """`worker.py` with storage options of its own, and no others' credentials."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AZURE_"))}
    given = {"WORKER_STORAGE_OPTIONS": json.dumps(storage_options)} if storage_options else {}
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env=inherited | given | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
