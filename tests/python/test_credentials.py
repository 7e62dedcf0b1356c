# SPDX-License-Identifier: Apache-2.0
"""Where credentials come from, what happens when they are wrong, and that none is seen anywhere."""

import base64
import contextlib
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

import pytest
import stores
from conftest import built_library
from stores import IMPATIENT, KEY_ID, SECRET, Bucket, Proxy, Store, start_worker
from support import assert_same, finish_worker, numbers

import lance_tasks as lt

TOKEN = "FwoGZXIvYXdzEB-a-session-token-not-for-logs"


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with stores.s3() as store:
        yield store


@pytest.fixture(scope="module", params=["s3", "azure"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with {"s3": stores.s3, "azure": stores.azurite}[request.param]() as store:
        yield store


def places(options: dict[str, str]) -> dict[str, str]:
    """Storage options without credentials."""
    return {k: v for k, v in options.items() if "key" not in k and "token" not in k}


# From the environment


def test_from_the_environment(store: Store, tmp_path: Path) -> None:
    """Every verb in a process of its own, with no storage options at all."""
    bucket = store.bucket()
    bucket.put_parquet("in.parquet", numbers(20))

    def work(*arguments: object) -> None:
        worker = start_worker(*arguments, storage_options={}, **store.environment)
        assert "error" not in (answer := finish_worker(worker)), answer

    spec = {"operation": "write", "uri": bucket.uri(), "sources": [bucket.uri("in.parquet")]}
    (tmp_path / "spec").write_text(json.dumps(spec))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "results").mkdir()
    work("prepare", tmp_path / "spec", tmp_path / "job")
    work("plan", tmp_path / "job", tmp_path / "results", tmp_path / "tasks")
    for task in (tmp_path / "tasks").iterdir():
        work("execute", task, tmp_path / "results" / task.name)
    work("commit", tmp_path / "job", tmp_path / "results")
    assert_same(bucket.table(), numbers(20))


def test_options_go_before_the_environment(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(s3) as proxy:
        wrong = proxy.add("fail", status=403, when=lambda h: "AKIAOTHER" in h["Authorization"])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
        lt.run(lt.Write(s3.bucket().uri()), data=numbers(1), storage_options=proxy.options)
        assert not wrong.hits
        with pytest.raises(lt.CredentialsError):
            lt.prepare(lt.Compact(s3.bucket().uri()), storage_options=places(proxy.options))
        assert wrong.hits


# From providers whose credentials run out


class Issuer:
    """Gives out credentials that are good for a second, as AWS's endpoints for containers and for
    web identities do; `expired` says whether a request bears one that has run out."""

    lifetime = timedelta(seconds=1.5)

    def __init__(self) -> None:
        self.issued: dict[str, datetime] = {}
        self.used: set[str] = set()
        self.refuses = False
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key_id, expiry = issuer.issue()
                answer = {"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": SECRET}
                answer |= {"Token": TOKEN, "SessionToken": TOKEN, "Expiration": expiry}
                self.reply(json.dumps(answer), "application/json")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                key_id, expiry = issuer.issue()
                self.reply(
                    "<AssumeRoleWithWebIdentityResponse "
                    'xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                    "<AssumeRoleWithWebIdentityResult><Credentials>"
                    f"<AccessKeyId>{key_id}</AccessKeyId>"
                    f"<SecretAccessKey>{SECRET}</SecretAccessKey>"
                    f"<SessionToken>{TOKEN}</SessionToken><Expiration>{expiry}</Expiration>"
                    "</Credentials></AssumeRoleWithWebIdentityResult>"
                    "</AssumeRoleWithWebIdentityResponse>",
                    "text/xml",
                )

            def reply(self, text: str, kind: str) -> None:
                self.send_response(403 if issuer.refuses else 200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "Issuer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def issue(self) -> tuple[str, str]:
        key_id = f"{KEY_ID}{len(self.issued):04}"
        # Rounded down: a client never holds for good what has run out here.
        expiry = (datetime.now(timezone.utc) + self.lifetime).replace(microsecond=0)
        self.issued[key_id] = expiry + timedelta(seconds=1)
        return key_id, expiry.strftime("%Y-%m-%dT%H:%M:%SZ")

    def expired(self, headers: http.client.HTTPMessage) -> bool:
        key_id = headers["Authorization"].split("Credential=")[1].split("/")[0]
        self.used.add(key_id)
        return self.issued[key_id] < datetime.now(timezone.utc)


def provider(kind: str, issuer: Issuer, folder: Path) -> dict[str, str]:
    """The environment that names a provider."""
    if kind == "container":
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{issuer.url}/creds"}
    if kind == "web_identity":
        (folder / "token").write_text(TOKEN)
        return {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/writer",
            "AWS_ROLE_SESSION_NAME": "session",
            "AWS_ENDPOINT_URL_STS": issuer.url,
        }
    (folder / "ask.py").write_text(
        "import urllib.request\n"
        f"print(urllib.request.urlopen('{issuer.url}/creds').read().decode())\n"
    )
    command = f"credential_process = {sys.executable} {folder / 'ask.py'}"
    (folder / "config").write_text(f"[profile writer]\nregion = us-east-1\n{command}\n")
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "writer"}


# In one process, so that what it holds runs out in mid-job.
LONG_JOB = """
import json, sys, time
import lance_tasks as lt
import pyarrow as pa

uri, options = sys.argv[1], json.loads(sys.argv[2])
table = pa.table({"id": range(10)})
job = lt.prepare(lt.Write(uri), table.schema, storage_options=options)
results = []
for part in "ab":
    results.append(lt.execute(job.task(part), table, storage_options=options))
    time.sleep(1.6)
print(lt.commit(job, results, storage_options=options).rows)
"""


def run_long_job(uri: str, options: dict[str, str], environment: dict[str, str]):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    return subprocess.run(
        [sys.executable, "-c", LONG_JOB, uri, json.dumps(options)],
        env=inherited | {"AWS_EC2_METADATA_DISABLED": "true"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", ["container", "web_identity", "process"])
def test_credentials_that_run_out_in_mid_job(s3: Store, tmp_path: Path, kind: str) -> None:
    bucket = s3.bucket()
    with Issuer() as issuer, Proxy(s3) as proxy:
        expired = proxy.add("fail", status=400, body=refusal("ExpiredToken"), when=issuer.expired)
        environment = provider(kind, issuer, tmp_path)
        done = run_long_job(bucket.uri(), places(proxy.options), environment)
    assert done.returncode == 0, done.stderr
    assert not expired.hits
    assert len(issuer.used) >= 3 and len(issuer.issued) >= 3
    assert bucket.table()["id"].to_pylist() == [*range(10)] * 2
    assert find_secrets([done.stdout, done.stderr], [KEY_ID, SECRET, TOKEN]) == set()
    files = [bucket.read(key) for key in bucket.files()]
    assert find_secrets(files, [KEY_ID, SECRET, TOKEN]) == set()


def test_credentials_that_run_out_and_stay_out(s3: Store) -> None:
    """Given per call, they are the caller's to renew: the class says so, and the job goes on."""
    bucket = s3.bucket()
    table = numbers(10)
    with Proxy(s3) as proxy:
        expired = proxy.add(
            "fail",
            status=400,
            body=refusal("ExpiredToken"),
            when=lambda h: h["X-Amz-Security-Token"] == TOKEN,
        )
        old = proxy.options | {"aws_session_token": TOKEN}
        new = proxy.options | {"aws_session_token": "renewed"}
        job = lt.prepare(lt.Write(bucket.uri()), table.schema, storage_options=new)
        with pytest.raises(lt.CredentialsError):
            lt.execute(job.task("0"), table, storage_options=old)
        results = [lt.execute(job.task("0"), table, storage_options=new)]
        with pytest.raises(lt.CredentialsError):
            lt.commit(job, results, storage_options=old)
        with pytest.raises(lt.CredentialsError):
            lt.abort(job, results, storage_options=old)
        assert expired.hits >= 3
        assert lt.commit(job, results, storage_options=new).version == 1
    assert_same(bucket.table(), table)


# Wrong ones


def refusal(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>The request was refused.</Message></Error>"


REFUSALS = {
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "AccessDenied": 403,
    "ExpiredToken": 400,
    "InvalidToken": 400,
}


def test_refused_by_s3(s3: Store) -> None:
    """Whatever the store calls it, and whichever verb it meets."""
    bucket = s3.bucket()
    bucket.write(numbers(10), max_rows_per_file=5)
    o = {"storage_options": bucket.options}
    spec = lt.Compact(bucket.uri())
    job = lt.prepare(spec, **o)
    (task,) = lt.plan(job, **o)
    results = [lt.execute(task, **o)]
    verbs = {
        "prepare": lambda **o: lt.prepare(spec, **o),
        "plan": lambda **o: lt.plan(job, **o),
        "execute": lambda **o: lt.execute(task, **o),
        "commit": lambda **o: lt.commit(job, results, **o),
        "abort": lambda **o: lt.abort(job, results, **o),
    }
    classes: dict[tuple[str, str], str] = {}

    def refused(code: str, verb: str, options: dict[str, str]) -> None:
        try:
            verbs[verb](storage_options=options, executor=lt.Executor())
            classes[code, verb] = "none"
        except lt.Error as error:
            classes[code, verb] = error.retry_class

    # Lance lists again a while after every refusal: all of them at once.
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(32) as pool:
        for code, status in REFUSALS.items():
            proxy = stack.enter_context(Proxy(s3))
            proxy.add("fail", status=status, body=refusal(code))
            for verb in verbs:
                pool.submit(refused, code, verb, proxy.options)
    assert len(classes) == len(REFUSALS) * len(verbs)
    wrong = {case: found for case, found in classes.items() if found != "credentials"}
    assert wrong == {}
    lt.commit(job, results, **o)
    assert_same(bucket.table(), numbers(10))


@pytest.mark.parametrize("kind", ["container", "web_identity", "process", "none"])
def test_a_provider_that_gives_none(s3: Store, tmp_path: Path, kind: str) -> None:
    bucket = s3.bucket()
    (tmp_path / "spec").write_text(json.dumps({"operation": "compact", "uri": bucket.uri()}))
    with Issuer() as issuer:
        issuer.refuses = True
        environment = {} if kind == "none" else provider(kind, issuer, tmp_path)
        worker = start_worker(
            *("prepare", tmp_path / "spec", tmp_path / "job"),
            storage_options=places(s3.options),
            **{"AWS_EC2_METADATA_DISABLED": "true"} | environment,
        )
        answer = finish_worker(worker)
    assert answer["class"] == "credentials", answer
    assert find_secrets([str(answer)], [KEY_ID, SECRET, TOKEN]) == set()


# Nothing is seen


def find_secrets(texts: list[str | bytes], secrets: list[str]) -> set[str]:
    """Those of the secrets that stand in one of the texts, as they are or quoted for a URL."""
    found = set()
    for secret in secrets:
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            for text in texts:
                data = text if isinstance(text, bytes) else text.encode()
                if form.encode() in data:
                    found.add(secret)
    return found


def test_no_secret_in_any_file(store: Store) -> None:
    """Neither in descriptors and results, of either encoding, nor in what is in the store."""
    bucket = store.bucket()
    secrets = [*store.secrets, store.address]
    source = bucket.put_parquet("in.parquet", numbers(100))
    seen: list[bytes | str] = []
    for spec in (
        lt.Write(bucket.uri(), sources=[source], max_rows_per_file=10),
        lt.Compact(bucket.uri(), target_rows_per_fragment=50),
        lt.CreateIndex(bucket.uri(), column="id", index_type="BTREE"),
    ):
        o = {"storage_options": bucket.options}
        job = lt.prepare(spec, **o)
        tasks = lt.plan(job, **o)
        results = list(lt.execute_all(tasks, **o))
        with Proxy(store) as proxy:
            proxy.add("cut")
            failed = list(lt.execute_all(tasks, storage_options=proxy.options | IMPATIENT))
        assert {result.status for result in failed} == {"failed"}
        secrets.append(proxy.address)
        outcome = lt.commit(job, results, **o)
        for descriptor in (job, *tasks):
            seen += [descriptor.to_bytes(), descriptor.to_json()]
        seen += [result.to_bytes() for result in results]
        # The message of an error may say which address did not answer.
        seen += [str(result.to_dict() | {"error": None}) for result in (*results, *failed)]
        seen.append(repr(outcome))
    seen += [bucket.read(key) for key in bucket.files()]
    assert find_secrets(seen, secrets) == set()
    assert find_secrets(seen, [bucket.name]) == {bucket.name}
    errors = [str(result.error) for result in failed]
    assert find_secrets(errors, list(store.secrets)) == set()


WRONG_KEY = base64.b64encode(b"a wrong key that may not leak either").decode()


def wrong_options(store: Store) -> list[dict[str, str]]:
    if store.scheme == "s3":
        return [
            store.options | {"aws_endpoint": "http://127.0.0.1:1"},
            store.options | {"aws_endpoint": f"http://user:{SECRET}@127.0.0.1:1"},
            store.options | {"aws_session_token": TOKEN, "aws_endpoint": SECRET},
        ]
    signature = stores.sas(timedelta(hours=1))
    keyless = places(store.options)
    return [
        store.options | {"azure_storage_account_key": WRONG_KEY},
        store.options | {"azure_storage_account_key": "not base64: " + SECRET},
        keyless | {"azure_storage_sas_token": stores.sas(timedelta(hours=-1))},
        keyless | {"azure_storage_sas_token": signature.replace("sig=", "sig=AAAA")},
        keyless | {"azure_storage_sas_token": SECRET},
    ]


def test_no_secret_in_any_error(store: Store) -> None:
    bucket = store.bucket()
    bucket.write(numbers(10), max_rows_per_file=5)
    spec = lt.Compact(bucket.uri())
    job = lt.prepare(spec, storage_options=bucket.options)
    (task,) = lt.plan(job, storage_options=bucket.options)
    results = [lt.execute(task, storage_options=bucket.options)]
    messages: list[str] = []

    def provoke(verb: Callable[..., object], *arguments: object, options: dict[str, str]) -> None:
        try:
            verb(*arguments, storage_options=options | IMPATIENT, executor=lt.Executor())
            messages.append("")
        except (lt.Error, ValueError, TypeError) as error:
            messages.extend([str(error), repr(error), str(vars(error))])

    calls = [
        (lt.prepare, spec),
        (lt.execute, task),
        (lt.commit, job, results),
        (lt.abort, job, results),
    ]
    wrong = wrong_options(store)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(32) as pool:
        broken = []
        for fault in ("cut", "fail", "half"):
            broken.append(stack.enter_context(Proxy(store)))
            broken[-1].add(fault, method="PUT|GET|HEAD|POST")
        for options in [*wrong, *(proxy.options for proxy in broken)]:
            for call in calls:
                pool.submit(provoke, *call, options=options)
        nowhere = Bucket(store, "no-such-bucket").uri()
        pool.submit(provoke, lt.prepare, lt.Compact(nowhere), options=bucket.options)
        for uri in (
            f"s3://{KEY_ID}:{SECRET}@bucket/d.lance",
            f"az://container/d.lance?sv=1&sig={SECRET}",
            f"https://host/d.lance?X-Amz-Signature={SECRET}",
            f"s3://bucket/d.lance?token={SECRET}",
            f"S3://:{SECRET}@bucket/d.lance",
        ):
            sources = lt.Write(bucket.uri("new.lance"), sources=[uri])
            for refused in (lt.Compact(uri), lt.Write(uri, sources=["x.csv"]), sources):
                pool.submit(provoke, lt.prepare, refused, options=bucket.options)
    errors = [message for message in messages if message]
    assert len(errors) > 80 and messages.count("") < 5
    secrets = [*store.secrets, SECRET, TOKEN, WRONG_KEY]
    secrets += [v.split("sig=")[1] for o in wrong for v in o.values() if "sig=" in v]
    assert find_secrets(errors, secrets) == set(), errors
    assert find_secrets(errors, [bucket.name]) == {bucket.name}


def test_an_endpoint_that_is_none(s3: Store) -> None:
    """Refused by the option's name, and the executor goes on."""
    bucket = s3.bucket()
    executor = lt.Executor()
    options = s3.options | {"aws_endpoint": "not a url"}
    with pytest.raises(lt.InvalidArgumentError, match="endpoint"):
        lt.prepare(lt.Compact(bucket.uri()), storage_options=options, executor=executor)
    spec = lt.Write(bucket.uri())
    lt.run(spec, data=numbers(10), storage_options=s3.options, executor=executor)
    assert_same(bucket.table(), numbers(10))


def test_no_secret_in_logs_and_spools(store: Store, tmp_path: Path) -> None:
    """The command line and Python at their most talkative, all going well and all going wrong."""
    bucket = store.bucket()
    source = bucket.put_parquet("in.parquet", numbers(30))
    options = tmp_path / "options.json"
    options.write_text(json.dumps(store.options))
    spec = {"operation": "write", "uri": bucket.uri(), "sources": [source], "max_rows_per_file": 10}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    talkative = {"LANCE_TASKS_LOG": "trace", "LANCE_LOG": "trace", "RUST_LOG": "trace"}
    seen: list[str | bytes] = []

    def cli(*arguments: object, expected: int = 0) -> None:
        binary = os.environ.get("LANCE_TASKS_BIN") or built_library().with_name("lance-tasks")
        done = subprocess.run(
            [binary, *map(str, arguments), "--storage-options", options],
            env=os.environ | talkative,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == expected, done.stderr[-2000:]
        seen.extend([done.stdout, done.stderr])

    cli("prepare", "spec.json", "--spool", "spool")
    cli("plan", "spool")
    cli("run", "spool", "--shard", "0/2")
    with Proxy(store) as proxy:
        proxy.add("cut")
        options.write_text(json.dumps(proxy.options | IMPATIENT))
        cli("run", "spool", "--shard", "1/2", expected=75)
    if store.scheme == "az":
        options.write_text(json.dumps(store.options | {"azure_storage_account_key": WRONG_KEY}))
        cli("run", "spool", "--shard", "1/2", expected=77)
    options.write_text(json.dumps(store.options))
    cli("run", "spool", "--shard", "1/2", "--json")
    cli("commit", "spool", "--json")
    cli("abort", "spool")
    assert_same(bucket.table(), numbers(30))
    seen += [path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    (tmp_path / "again.json").write_text(json.dumps({"operation": "compact", "uri": bucket.uri()}))
    worker = start_worker(
        *("prepare", tmp_path / "again.json", tmp_path / "job"),
        storage_options=store.options,
        **talkative,
    )
    seen += [*worker.communicate(timeout=60), (tmp_path / "job").read_bytes()]
    assert any("TRACE" in str(text) for text in seen)
    assert find_secrets(seen, [*store.secrets, WRONG_KEY]) == set()
    assert find_secrets(seen, [bucket.name]) == {bucket.name}
