# SPDX-License-Identifier: Apache-2.0
"""Each operation on two nodes makes the dataset that it makes in one process."""

import json
import subprocess
import sys
from pathlib import Path

import lance
import nodes
import oracle
import pyarrow as pa
import pytest
import ray
from cli_support import Cli
from support import assert_same, assert_same_rows, make_dataset, numbers, read

import lance_tasks as lt
import lance_tasks.ray as ltr


def test_every_operation(case, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    outcome = ltr.run(case.spec, spool=spool)
    assert outcome.complete and not outcome.already_committed
    case.check()
    oracle.check_no_stray(case.uri)
    # The spool is the command line's.
    shown = Cli(tmp_path).json("inspect", spool)
    assert shown["state"] == "committed", shown
    assert Cli(tmp_path).json("commit", spool)["version"] == outcome.version
    # And the same call again does nothing.
    assert ltr.run(case.spec, spool=spool).already_committed


def test_cleanup_and_bases(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    lance.dataset(uri).delete("id < 100")
    assert ltr.run(lt.Cleanup(uri, retain_versions=1)).metrics["versions"] == 1
    assert len(lance.dataset(uri).versions()) == 1
    ltr.run(lt.AddBases(uri, lt.Base(3, tmp_path / "cold", name="cold")))
    assert lance.dataset(uri).version == 3


def blocks(count: int = 10, rows: int = 100) -> list[pa.Table]:
    return [numbers(rows, i * rows) for i in range(count)]


@pytest.mark.parametrize("kind", ["tables", "references", "functions", "iterator", "table"])
def test_data(uri: str, kind: str) -> None:
    """Rows in their order, whatever form the blocks have."""
    given = {
        "tables": lambda: blocks(),
        "references": lambda: [ray.put(block) for block in blocks()],
        "functions": lambda: [lambda b=block: b for block in blocks()],
        "iterator": lambda: iter(blocks()),
        "table": lambda: numbers(1000),
    }[kind]()
    schema = numbers(0).schema if kind == "functions" else None
    ltr.run(lt.Write(uri), data=given, schema=schema)
    assert_same(read(uri), numbers(1000))


def test_small_blocks_are_put_together(uri: str) -> None:
    ltr.run(lt.Write(uri), data=blocks(20, 10), min_rows_per_file=100)
    assert [f.count_rows() for f in lance.dataset(uri).get_fragments()] == [100, 100]
    assert_same(read(uri), numbers(200))


def test_take_blobs(uri: str) -> None:
    films = [bytes([i]) * (i * 1000) for i in range(50)]
    table = pa.table({"id": range(50), "film": lt.blob_array(films)})
    ltr.run(lt.Write(uri, blob_columns=["film"]), data=table)
    keys = [49, 3, 3, 17, 0]
    spec = lt.TakeBlobs(uri, column="film", indices=keys, max_rows_per_task=2)
    ds = ltr.run(spec)
    ds.context.execution_options.preserve_order = True
    taken = [row["film"] for row in ds.take_all()]
    assert taken == [films[key] for key in keys]


def test_timeline(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    places = [tmp_path / f"t.{ending}" for ending in ("json", "svg", "html")]
    spec = lt.Compact(uri, target_rows_per_fragment=300)
    ltr.run(spec, timeline=places, ray_remote_args=nodes.hooked("slow"))
    events = json.loads(places[0].read_text())["traceEvents"]
    done = [event for event in events if event["ph"] == "X"]
    assert len(done) == 4 and {event["cat"] for event in done} == {"ok"}
    assert all(event["dur"] > 0 for event in done)
    assert len({event["pid"] for event in done}) == 2, "both nodes had tasks"
    assert places[1].read_text().count("<title>") == 4
    assert "http" not in places[2].read_text().replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(ValueError, match="ends in none"):
        ltr.run(lt.Compact(uri), timeline=tmp_path / "t.png")


def test_placement(uri: str, cluster) -> None:
    """`ray_remote_args` decide where actors are."""
    make_dataset(uri)
    node = cluster.add_node(**nodes.NODE, resources={"special": 4})
    places: list[str] = []
    try:
        path = Path(uri).with_suffix(".json")
        args = {"resources": {"special": 1}, "num_cpus": 0.5}
        spec = lt.Compact(uri, target_rows_per_fragment=300)
        ltr.run(spec, num_workers=2, ray_remote_args=args, timeline=path)
        for event in json.loads(path.read_text())["traceEvents"]:
            if event["name"] == "process_name":
                places.append(event["args"]["name"])
    finally:
        cluster.remove_node(node)
    assert len(places) == 1 and node.node_id[:6] in places[0]


def test_another_version_is_refused(uri: str) -> None:
    make_dataset(uri)
    before = lance.dataset(uri).version
    hook = nodes.hooked("other_version")
    with pytest.raises(lt.VersionMismatchError) as caught:
        ltr.run(lt.Compact(uri), ray_remote_args=hook)
    own = lt.versions()
    for said in ("0.0.7", "13.9.9", own["lance_tasks"], own["lance"], "wire format 1"):
        assert said in str(caught.value)
    with pytest.raises(lt.VersionMismatchError, match=r"0\.0\.7"):
        ltr.write(ray.data.range(10), uri, mode="append", ray_remote_args=hook)
    assert lance.dataset(uri).version == before


def test_no_library_on_a_worker(uri: str) -> None:
    make_dataset(uri)
    env = {"runtime_env": {"env_vars": {"LANCE_TASKS_LIBRARY": "/nowhere.so"}}}
    with pytest.raises(ltr.WorkerStartError, match=r"/nowhere\.so"):
        ltr.run(lt.Compact(uri), ray_remote_args=env)


def test_errors_of_the_input(uri: str) -> None:
    make_dataset(uri)
    with pytest.raises(lt.AlreadyExistsError):
        ltr.run(lt.Write(uri), data=blocks())
    with pytest.raises(lt.InvalidArgumentError, match="takes no rows"):
        ltr.run(lt.Compact(uri), data=blocks())
    wrong = [*blocks(2), pa.table({"other": [1]})]
    before = oracle.files(uri)
    with pytest.raises(lt.SchemaMismatchError, match="other"):
        ltr.run(lt.Write(uri, mode="append"), data=wrong)
    assert oracle.files(uri) == before


def test_the_package_imports_no_ray() -> None:
    code = "import sys, lance_tasks; assert not {'ray', 'pyarrow', 'lance'} & set(sys.modules)"
    code += (
        "\nimport lance_tasks.ray; assert not {'pyarrow', 'lance', 'ray.data'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_appends_keep_order(uri: str) -> None:
    make_dataset(uri, rows=100)
    ltr.run(lt.Write(uri, mode="append"), data=[numbers(50, 100), numbers(50, 150)])
    assert_same_rows(read(uri), numbers(200))
