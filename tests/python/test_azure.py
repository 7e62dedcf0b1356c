# SPDX-License-Identifier: Apache-2.0
"""What only Azure has: shared access signatures, account keys that are really checked, and uploads
in blocks. The rest is in test_object_store.py and test_store_faults.py, for S3 and Azure alike."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import stores
from stores import Bucket, Proxy, Store, start_worker
from support import assert_same, numbers

import lance_tasks as lt


@pytest.fixture(scope="module")
def azure() -> Iterator[Store]:
    with stores.azurite() as store:
        yield store


@pytest.fixture
def bucket(azure: Store) -> Bucket:
    return azure.bucket()


def signed(azure: Store, lifetime: timedelta) -> dict[str, str]:
    """Storage options with a shared access signature and no key."""
    options = {k: v for k, v in azure.options.items() if k != "azure_storage_account_key"}
    return options | {"azure_storage_sas_token": stores.sas(lifetime)}


def refused(*calls: Callable[[], object]) -> None:
    """Each fails for its credentials. At once: Lance lists again a while after every refusal."""

    def one(call: Callable[[], object]) -> None:
        with pytest.raises(lt.CredentialsError):
            call()

    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(one, calls))


def test_with_a_shared_access_signature(azure: Store, bucket: Bucket) -> None:
    o = {"storage_options": signed(azure, timedelta(hours=1))}
    lt.run(lt.Write(bucket.uri(), max_rows_per_file=10), data=numbers(50), **o)
    lt.run(lt.Compact(bucket.uri(), target_rows_per_fragment=50), **o)
    lt.run(lt.CreateIndex(bucket.uri(), column="id", index_type="BTREE"), **o)
    # No abort: Azurite answers 500 to a batch of deletions that is signed so.
    assert_same(bucket.table(), numbers(50))
    assert len(bucket.dataset().get_fragments()) == 1


def test_a_signature_that_runs_out(azure: Store, bucket: Bucket) -> None:
    """In mid-job, with datasets and stores of the old one in the caches."""
    bucket.write(numbers(50), max_rows_per_file=10)
    old = {"storage_options": signed(azure, timedelta(seconds=3))}
    job = lt.prepare(lt.Compact(bucket.uri(), target_rows_per_fragment=50), **old)
    (task,) = lt.plan(job, **old)
    results = [lt.execute(task, **old)]
    time.sleep(3.1)
    refused(
        lambda: lt.prepare(lt.Compact(bucket.uri()), **old),
        lambda: lt.execute(task, **old),
        lambda: lt.commit(job, results, **old),
        lambda: lt.abort(job, results, **old),
    )
    new = {"storage_options": signed(azure, timedelta(hours=1))}
    lt.commit(job, results, **new)
    assert_same(bucket.table(), numbers(50))
    assert bucket.unreferenced() == set()


@pytest.mark.parametrize(
    "wrong",
    [
        {"azure_storage_account_key": "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50"},
        {"azure_storage_account_key": "*not base64*"},
        {"azure_storage_account_name": "another"},
    ],
    ids=["key", "form", "account"],
)
def test_wrong_keys(azure: Store, bucket: Bucket, wrong: dict[str, str]) -> None:
    bucket.write(numbers(50), max_rows_per_file=10)
    o = {"storage_options": bucket.options}
    job = lt.prepare(lt.Compact(bucket.uri(), target_rows_per_fragment=50), **o)
    (task,) = lt.plan(job, **o)
    results = [lt.execute(task, **o)]
    bad = {"storage_options": bucket.options | wrong, "executor": lt.Executor()}
    refused(
        lambda: lt.prepare(lt.Compact(bucket.uri()), **bad),
        lambda: lt.execute(task, **bad),
        lambda: lt.commit(job, results, **bad),
        lambda: lt.abort(job, results, **bad),
    )
    lt.commit(job, results, **o)
    assert_same(bucket.table(), numbers(50))


@pytest.mark.parametrize("path", ["deep/er/d.lance", "with space/d.lance", "grüße/100%.lance"])
def test_names(bucket: Bucket, path: str) -> None:
    o = {"storage_options": bucket.options}
    lt.run(lt.Write(bucket.uri(path)), data=numbers(10), **o)
    lt.run(lt.Write(bucket.uri(path), mode="append"), data=numbers(10, start=10), **o)
    assert_same(bucket.table(path), numbers(20))


def test_killed_between_blocks(bucket: Bucket, tmp_path: Path) -> None:
    """Blocks that no list names are no blob: the next attempt is as if there had been none."""
    noise = np.random.default_rng(0).integers(0, 1 << 62, 1_000_000)
    table = pa.table({"noise": noise})
    source = bucket.put_parquet("in.parquet", table)
    o = {"storage_options": bucket.options}
    job = lt.prepare(lt.Write(bucket.uri(), sources=[source]), **o)
    (task,) = lt.plan(job, **o)
    (tmp_path / "task").write_bytes(task.to_bytes())
    with Proxy(bucket.store) as proxy:
        held = proxy.add("hold", method="PUT", path="comp=blocklist")
        worker = start_worker(
            *("execute", tmp_path / "task", tmp_path / "result"), storage_options=proxy.options
        )
        while not held.hit.wait(0.05):
            assert worker.poll() is None, worker.communicate()
        worker.kill()
        worker.communicate()
        assert any("comp=block&" in target for _, target in proxy.requests)
    assert bucket.files("d.lance") == {}
    lt.commit(job, [lt.execute(task, **o)], **o)
    assert_same(bucket.table(), table)
    assert bucket.unreferenced() == set()
