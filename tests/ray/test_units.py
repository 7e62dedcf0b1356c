# SPDX-License-Identifier: Apache-2.0
"""Parts without a cluster."""

import io
import json
import os
import pickle
import re
import sys
import uuid
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from support import numbers

import lance_tasks as lt
from lance_tasks.ray._progress import Bar
from lance_tasks.ray._results import Results
from lance_tasks.ray._spool import _grouped
from lance_tasks.ray._timeline import Timeline
from lance_tasks.ray._worker import Storage, memory_budget


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """No cluster here."""


def test_storage_options_are_not_shown() -> None:
    storage = Storage({"aws_secret_access_key": "hidden"}, {"s3://b": {"token": "hidden"}})
    assert "hidden" not in f"{storage} {storage!r}"
    again = pickle.loads(pickle.dumps(storage))
    assert again.keywords() == storage.keywords()
    assert again.options() == {"aws_secret_access_key": "hidden"}


def test_results_are_kept_small(uri: str) -> None:
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    results = [lt.execute(job.task(str(i)), numbers(3, i * 3)).to_bytes() for i in range(20)]
    kept = Results(results)
    assert kept.all() == results and len(kept) == 20
    assert sum(map(len, kept._packed)) < sum(map(len, results)) / 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        bar = Bar("compact", True, stream)
        bar.counts.total, bar.counts.done, bar.counts.rows, bar.counts.bytes = 4, 1, 1000, 5 << 20
        bar.counts.failed, bar.counts.retries = 1, 2
        bar.update()
        bar.say("a worker is lost")
        bar.close()
    shown = terminal.getvalue()
    assert "1/4 tasks, 1,000 rows, 5.0 MiB, 1 failed, 2 retried" in shown
    assert "a worker is lost\n" in re.sub(" +\n", "\n", shown)
    assert file.getvalue() == "", "nothing where there is no terminal"


def test_the_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One output, which is replaced. IPython is stood in for."""
    shown: list[str] = []

    class ZMQInteractiveShell:
        pass

    class Handle:
        def update(self, data: dict, raw: bool) -> None:
            shown[-1] = data["text/plain"]

    def display(data: dict, raw: bool, display_id: bool) -> Handle:
        shown.append(data["text/plain"])
        return Handle()

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython, module.display = ZMQInteractiveShell, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    bar = Bar("compact", True, io.StringIO())
    assert bar.shown and not Bar("compact", False, io.StringIO()).shown
    bar.counts.total = 2
    for done in range(3):
        bar.counts.done = done
        bar.update(now=True)
    bar.say("a worker is lost")
    bar.close()
    bar_text = f"compact [{'#' * 24}] 2/2 tasks, 0 rows, 0 B"
    assert shown == [f"a worker is lost\n{bar_text}"]


def test_the_timeline_at_a_glance(tmp_path: Path) -> None:
    timeline = Timeline()
    for i in range(6):
        at = {"start": 100.0 + i, "end": 101.0 + i}
        timeline.add(node="n1", worker="worker 0", task=f"task {i}", kind="ok", **at)
    slow = {"start": 100.0, "end": 110.0}
    timeline.add(node="n2", worker="worker 1", task="task 9", kind="again", **slow)
    beside = {"start": 101.0, "end": 102.0}
    timeline.add(node="n2", worker="worker 1", task="<b>", kind="lost", **beside)
    timeline.write([str(tmp_path / "t.json"), str(tmp_path / "t.svg")])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert len([e for e in events if e["ph"] == "X"]) == 8
    # What a worker does side by side has lanes of its own.
    assert len([e for e in events if e["name"] == "thread_name"]) == 3
    picture = (tmp_path / "t.svg").read_text()
    assert picture.count('stroke="#f0ad00" stroke-width="2"') == 1, "the straggler is framed"
    assert "&lt;b&gt;" in picture and "<b>" not in picture
    assert "8 attempts in 10.0 s: 6 ok, 1 again, 1 lost" in picture
    Timeline().write([str(tmp_path / "empty.html")])


def test_memory_of_a_worker() -> None:
    """Three quarters of what Ray was asked for, else the CPUs' share of half the machine."""
    assert memory_budget(4 << 30, 1) == 3 << 30
    count = os.cpu_count() or 1
    assert memory_budget(None, count) is None, "the executor's own default, half of the machine"
    if count > 1:
        share = memory_budget(None, 1)
        assert share is not None
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 1 << 28 <= share <= max(machine / 2 / count, 1 << 28)


def test_names_of_results() -> None:
    items = [(0, i, True, str(uuid.uuid4()), b"") for i in [0, 1, 2, 5, 7, 8]]
    ((text, group),) = _grouped(items)
    assert text == "0-2_5_7-8" and group == items
    many = [(0, i * 3, True, "", b"") for i in range(500)]
    groups = _grouped(many)
    assert all(len(text) <= 160 for text, _ in groups)
    assert [item for _, group in groups for item in group] == many


def test_tensors() -> None:
    import numpy as np
    from ray.data.extensions.tensor_extension import ArrowTensorArray

    from lance_tasks.ray._tables import plain

    vectors = ArrowTensorArray.from_numpy(np.arange(12, dtype="float32").reshape(4, 3))
    table = plain(pa.table({"v": vectors}).slice(1, 2))
    assert table["v"].type == pa.list_(pa.float32(), 3)
    assert table["v"].to_pylist() == [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
