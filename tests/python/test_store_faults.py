# SPDX-License-Identifier: Apache-2.0
"""A store that fails, stalls, cuts connections or loses answers, and processes killed at its door.

Whatever happens: each row once or an error that says what to do, and when the store is well again
the same job goes on, or `abort` leaves no object that nothing refers to.
"""

import dataclasses
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stores
from stores import IMPATIENT, Bucket, Proxy, Rule, Store, start_worker
from support import assert_same, numbers, spool

import lance_tasks as lt

MANIFEST = {"method": "PUT", "path": r"/_versions/[^/]*\.manifest"}

UPLOAD = {"method": "PUT|POST", "path": r"/(data|_indices)/"}


@pytest.fixture(scope="module", params=["s3", "azure"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with {"s3": stores.s3, "azure": stores.azurite}[request.param]() as store:
        yield store


class Case:
    """A job of an operation on a dataset of 100 rows, and the rows that it leaves."""

    def __init__(self, bucket: Bucket, operation: str) -> None:
        uri = bucket.uri()
        source = bucket.put_parquet("source.parquet", numbers(100, start=100))
        if operation != "create":
            bucket.write(numbers(100), max_rows_per_file=10)
        self.bucket, self.operation = bucket, operation
        self.before = bucket.files()
        self.versions = [] if operation == "create" else bucket.versions()
        self.spec, self.expected = {
            "create": (lt.Write(uri, sources=[source]), numbers(100, start=100)),
            "append": (lt.Write(uri, mode="append", sources=[source]), numbers(200)),
            "overwrite": (
                lt.Write(uri, mode="overwrite", sources=[source]),
                numbers(100, start=100),
            ),
            "compact": (lt.Compact(uri, target_rows_per_fragment=50), numbers(100)),
            "create_index": (
                lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2),
                numbers(100),
            ),
        }[operation]

    def prepare(self, options: dict[str, str] | None = None) -> lt.Job:
        return lt.prepare(self.spec, storage_options=options or self.bucket.options)

    def executed(self) -> tuple[lt.Job, list[lt.Result]]:
        job, o = self.prepare(), self.bucket.options
        tasks = lt.plan(job, storage_options=o)
        return job, [lt.execute(task, storage_options=o) for task in tasks]

    def check(self) -> None:
        assert_same(self.bucket.table(), self.expected)
        self.bucket.dataset().validate()
        assert self.bucket.unreferenced() == set()


OPERATIONS = ["create", "append", "overwrite", "compact", "create_index"]


def with_every_operation(store: Store, check: Callable[[Case], None]) -> None:
    """One job of each operation, at once: most of their time goes into waiting to try again."""

    def one(operation: str) -> None:
        try:
            check(Case(store.bucket(), operation))
        except BaseException as error:
            raise AssertionError(operation) from error

    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        list(pool.map(one, OPERATIONS))


# Faults that pass


@pytest.mark.parametrize("faults", [("fail", "cut"), ("lose", "half")], ids="-".join)
def test_faults_that_pass(store: Store, faults: tuple[str, str]) -> None:
    """Every n-th request fails: the job is done all the same, and once."""

    def check(case: Case) -> None:
        with Proxy(store) as proxy:
            # A listing that ends early is an error for the caller to try again.
            objects = {"method": "GET", "path": r"^[^?]*$"}
            rules = [
                proxy.add(fault, status=500, first=i, every=5, **(objects if i == 2 else {}))
                for i, fault in enumerate(faults, 1)
            ]
            outcome = lt.run(case.spec, storage_options=proxy.options)
        assert all(rule.hits for rule in rules)
        assert outcome.version == case.bucket.dataset().version
        case.check()

    with_every_operation(store, check)


# Faults that stay


@pytest.mark.parametrize(
    "fault",
    [{"action": "fail"}, {"action": "cut"}],
    ids=["503", "cut"],
)
def test_tasks_that_cannot_write(store: Store, fault: dict) -> None:
    def check(case: Case) -> None:
        job = case.prepare()
        tasks = lt.plan(job, storage_options=case.bucket.options)
        with Proxy(store) as proxy:
            rule = proxy.add(**fault, method="PUT|POST")
            failed = list(lt.execute_all(tasks, storage_options=proxy.options | IMPATIENT))
        assert rule.hits
        assert {result.status for result in failed} == {"failed"}
        assert {result.error.retry_class for result in failed} == {"retry_task"}
        assert case.bucket.files() == case.before
        finish(case, job, failed)

    with_every_operation(store, check)


@pytest.mark.parametrize("fault", ["fail", "half"])
def test_tasks_that_cannot_read(store: Store, fault: str) -> None:
    """Of an answer that ends early, no task makes rows."""

    def check(case: Case) -> None:
        job = case.prepare()
        tasks = lt.plan(job, storage_options=case.bucket.options)
        with Proxy(store) as proxy:
            rule = proxy.add(fault, method="GET", path=r"/data/|parquet")
            failed = list(lt.execute_all(tasks, storage_options=proxy.options | IMPATIENT))
        assert rule.hits
        assert {result.status for result in failed} == {"failed"}
        assert {result.error.retry_class for result in failed} == {"retry_task"}
        finish(case, job, failed)

    with_every_operation(store, check)


@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_a_commit_that_cannot_write(store: Store, fault: str) -> None:
    def check(case: Case) -> None:
        job, results = case.executed()
        with Proxy(store) as proxy:
            rule = proxy.add(fault, **MANIFEST)
            with pytest.raises(lt.Error) as caught:
                lt.commit(job, results, storage_options=proxy.options | IMPATIENT)
        assert rule.hits
        assert caught.value.retry_class == "retry_task", caught.value
        assert_untouched(case)
        finish(case, job, results)

    with_every_operation(store, check)


def finish(case: Case, job: lt.Job, results: list[lt.Result], **expected: object) -> lt.Outcome:
    """The store is well again: what is left of the job is done, and its losers' files go."""
    o = {"storage_options": case.bucket.options}
    results = list(results)
    while tasks := lt.plan(job, results, **o):
        results += [lt.execute(task, **o) for task in tasks]
    outcome = lt.commit(job, results, **o)
    for name, value in expected.items():
        assert getattr(outcome, name) == value, outcome
    lt.abort(job, results, **o)
    case.check()
    return outcome


def assert_untouched(case: Case) -> None:
    if case.versions:
        assert case.bucket.versions() == case.versions
    else:
        assert "_versions/" not in str(case.bucket.files())


def own_manifest(job: lt.Job) -> int:
    """Which manifest of a commit holds what the job made: a compaction first reserves the ids of
    its fragments, in a version of its own."""
    return 2 if job.operation == "compact" else 1


# Lost answers


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
def test_the_answer_to_the_manifest_is_lost(store: Store, times: int | None) -> None:
    """The store has the manifest; asked again, it says that another was quicker: that was us."""

    def check(case: Case) -> None:
        job, results = case.executed()
        with Proxy(store) as proxy:
            rule = proxy.add("lose", times=times, **MANIFEST)
            outcome = lt.commit(job, results, storage_options=proxy.options | IMPATIENT)
        assert rule.hits
        assert not outcome.already_committed
        finish(case, job, results, already_committed=True, version=outcome.version)

    with_every_operation(store, check)


def test_the_store_is_gone_after_the_manifest(store: Store) -> None:
    """Whether the commit was made cannot be told; committed again, it says so."""

    def check(case: Case) -> None:
        job, results = case.executed()
        with Proxy(store) as proxy:
            made = proxy.add("lose", first=own_manifest(job), times=1, **MANIFEST)
            proxy.add("cut", when=lambda _: made.hit.is_set())
            with pytest.raises(lt.CommitUnknownError) as caught:
                lt.commit(job, results, storage_options=proxy.options | IMPATIENT)
        assert made.hits
        assert caught.value.retry_class == "retry_task"
        finish(case, job, results, already_committed=True)

    with_every_operation(store, check)


def test_a_committer_that_fails_behind_another(store: Store) -> None:
    """It stands before its first manifest while another commits the job, and then its store is
    gone: it must not take away what is committed now."""

    def check(case: Case) -> None:
        job, results = case.executed()
        ended: list[lt.Outcome | lt.Error] = []

        def commit_late(options: dict[str, str]) -> None:
            try:
                ended.append(lt.commit(job, results, storage_options=options))
            except lt.Error as error:
                ended.append(error)

        with Proxy(store) as proxy:
            held = proxy.add("hold", **MANIFEST)
            late = threading.Thread(target=commit_late, args=(proxy.options | IMPATIENT,))
            late.start()
            held.hit.wait()
            outcome = lt.commit(job, results, storage_options=case.bucket.options)
            proxy.release()
            late.join()
        (late_outcome,) = ended
        if isinstance(late_outcome, lt.Error):
            assert late_outcome.retry_class == "retry_task", late_outcome
        else:
            assert late_outcome.version == outcome.version
        assert_same(case.bucket.table(), case.expected)
        finish(case, job, results, already_committed=True, version=outcome.version)

    with_every_operation(store, check)


# Stalls


def test_deadlines_end_calls_that_stall(store: Store) -> None:
    def check(case: Case) -> None:
        job, results = case.executed()
        task = lt.plan(job, storage_options=case.bucket.options)[0]
        verbs = {
            "prepare": lambda **o: lt.prepare(case.spec, **o),
            "execute": lambda **o: lt.execute(task, **o),
            "commit": lambda **o: lt.commit(job, results, **o),
            "abort": lambda **o: lt.abort(job, results, **o),
        }
        for verb, call in verbs.items():
            with Proxy(store) as proxy:
                held = proxy.add("hold")
                with proxy.stalling(), pytest.raises(lt.Error) as caught:
                    call(storage_options=proxy.options, timeout=0.5, executor=lt.Executor())
                assert held.hits, verb
                assert caught.value.code == "DEADLINE_EXCEEDED", (verb, caught.value)
                assert caught.value.retry_class == "retry_task"
        finish(case, job, results)

    with_every_operation(store, check)


@pytest.mark.parametrize("action", ["hold", "hold_answer"])
def test_a_commit_stalls_at_its_manifest(store: Store, action: str) -> None:
    def check(case: Case) -> None:
        job, results = case.executed()
        with Proxy(store) as proxy:
            held = proxy.add(action, first=own_manifest(job), **MANIFEST)
            with proxy.stalling():
                try:
                    lt.commit(job, results, storage_options=proxy.options, timeout=2)
                    # Its answer did not come, yet the history has it.
                    assert action == "hold_answer"
                except lt.CommitUnknownError as error:
                    assert error.retry_class == "retry_task"
            assert held.hits
        finish(case, job, results, already_committed=action == "hold_answer")

    with_every_operation(store, check)


# Killed processes


@pytest.mark.parametrize("then", ["commit", "abort"])
def test_workers_are_killed_in_mid_upload(store: Store, tmp_path: Path, then: str) -> None:
    """A file is there, or the next is on the way, and there is no result that says so."""

    def check(case: Case) -> None:
        job = case.prepare()
        paths = tmp_path / f"{case.operation}.task", tmp_path / f"{case.operation}.result"
        for number, task in enumerate(lt.plan(job, storage_options=case.bucket.options)):
            paths[0].write_bytes(task.to_bytes())
            # An index segment has two files.
            first = 1 + number if case.operation == "create_index" else 1
            with Proxy(store) as proxy:
                held = proxy.add("hold_answer", **UPLOAD, first=first)
                kill_at(held, start(proxy, "execute", *paths))
        assert case.bucket.files() != case.before and not paths[1].exists()
        if then == "commit":
            finish(case, job, [])
        else:
            lt.abort(job, [], storage_options=case.bucket.options)
            assert case.bucket.files() == case.before

    with_every_operation(store, check)


@pytest.mark.parametrize("action", ["hold", "hold_answer"])
@pytest.mark.parametrize("then", ["commit", "abort"])
def test_a_committer_is_killed_at_its_manifest(
    store: Store, tmp_path: Path, action: str, then: str
) -> None:
    committed = action == "hold_answer"

    def check(case: Case) -> None:
        job, results = case.executed()
        place = spool(tmp_path / case.operation, job, results)
        with Proxy(store) as proxy:
            held = proxy.add(action, first=own_manifest(job), **MANIFEST)
            kill_at(held, start(proxy, "commit", *place))
        if then == "commit":
            finish(case, job, results, already_committed=committed)
            return
        report = lt.abort(job, results, storage_options=case.bucket.options)
        if committed:
            assert report.files_removed == 0
            case.check()
        else:
            assert report.kept == 0
            assert case.bucket.unreferenced() == set()
            assert lt.abort(job, results, storage_options=case.bucket.options).files_removed == 0

    with_every_operation(store, check)


def start(proxy: Proxy, *arguments: object) -> subprocess.Popen:
    return start_worker(*arguments, storage_options=proxy.options)


def kill_at(rule: Rule, worker: subprocess.Popen) -> None:
    """Kill a process once it stands at a rule of the proxy."""
    while not rule.hit.wait(0.05):
        assert worker.poll() is None, worker.communicate()
    worker.kill()
    worker.communicate()


# A store without conditional put


@pytest.fixture
def careless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """S3 that ignores If-None-Match: s3rver, or moto behind a proxy that takes the header away."""
    if request.param == "s3rver":
        with stores.s3rver(tmp_path / "s3rver") as store:
            yield store
        return
    with stores.s3() as store, Proxy(store) as proxy:
        proxy.add("strip")
        yield dataclasses.replace(store, address=proxy.address, options=proxy.options)


@pytest.mark.parametrize("careless", ["s3rver", "stripped"], indirect=True)
@pytest.mark.parametrize("operation", ["create", "append"])
def test_a_store_that_overwrites_manifests(careless: Store, operation: str) -> None:
    """Two committers stand before the same version, and nothing makes one of them wait: the commit
    is refused, rather than one of them lost."""
    bucket = careless.bucket()
    if operation == "append":
        bucket.write(numbers(10))
    before = bucket.files()
    jobs = []
    for i in range(2):
        job = lt.prepare(
            lt.Write(bucket.uri(), mode=operation),
            numbers(0).schema,
            storage_options=bucket.options,
        )
        rows = numbers(10, start=10 * (i + 1))
        jobs.append((job, [lt.execute(job.task("0"), rows, storage_options=bucket.options)]))
    outcomes: list[lt.Outcome | lt.Error] = []

    def commit(job: lt.Job, results: list[lt.Result], options: dict[str, str]) -> None:
        try:
            executor = lt.Executor()
            outcomes.append(lt.commit(job, results, storage_options=options, executor=executor))
        except lt.Error as error:
            outcomes.append(error)

    with Proxy(careless) as slow:
        late = slow.add("delay", times=1, **MANIFEST)
        second = threading.Thread(target=commit, args=(*jobs[1], slow.options))
        second.start()
        while second.is_alive() and not late.hit.wait(0.05):
            pass
        commit(*jobs[0], bucket.options)
        slow.recover()
        second.join()
    assert [type(outcome) for outcome in outcomes] == [lt.NotSupportedError] * 2, outcomes
    for error in outcomes:
        assert "If-None-Match" in error.message or "conditional" in error.message
    for job, results in jobs:
        lt.abort(job, results, storage_options=bucket.options)
    assert bucket.files() == before


def test_a_store_with_conditional_put_is_not_suspected(store: Store) -> None:
    """Also where the answer to whatever the library asks to find out is lost, or comes late."""

    def check(fault: str) -> None:
        bucket = store.bucket()
        with Proxy(store) as proxy:
            rule = proxy.add(fault, every=2, when=lambda h: h["If-None-Match"] == "*")
            for i in range(3):
                spec = lt.Write(bucket.uri(), mode="append" if i else "create")
                data = numbers(10, start=10 * i)
                lt.run(spec, data=data, storage_options=proxy.options, executor=lt.Executor())
        assert rule.hits
        assert_same(bucket.table(), numbers(30))
        assert bucket.versions() == [1, 2, 3] and bucket.unreferenced() == set()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(check, ["lose", "fail", "cut"]))
