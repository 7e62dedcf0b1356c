# SPDX-License-Identifier: Apache-2.0
"""From the start of Python to the first task's result: a worker that gets its task as bytes."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import inputs
from common import SIDES, Section, Settings, child, child_environment, medians, ms

# What a worker does; {0} is the folder. The task's bytes come from a file.
OURS = """
import lance_tasks as lt
with open("{0}/{1}.task", "rb") as file:
    task = file.read()
result = lt.execute(task)
"""
THEIRS = {
    "write": """
import lance
import pyarrow.parquet as pq
from lance.fragment import write_fragments
result = write_fragments(pq.read_table("{0}/row.parquet"), "{0}/written.lance", mode="create")
""",
    "compact": """
import lance
from lance.optimize import CompactionTask
with open("{0}/theirs.task") as file:
    task = CompactionTask.from_json(file.read())
result = task.execute(lance.dataset("{0}/data.lance"))
""",
    "create_index": """
import lance
result = lance.dataset("{0}/data.lance").create_index_uncommitted(
    "key", "BTREE", name="key_idx", fragment_ids=[0, 1]
)
""",
}
TITLES = {
    "write": "write one row from Parquet",
    "compact": "compact two fragments",
    "create_index": "BTREE over two fragments",
}
# How far ours has come when it ends; each includes those before it.
STEPS = {
    "Python alone": "",
    "and `import lance_tasks`": "import lance_tasks as lt\n",
    "and the library loaded": "import lance_tasks as lt\nlt.versions()\n",
    "and an executor made": "import lance_tasks as lt\nlt.Executor()\n",
}
# Peak resident set, and what of the resident set is the process's own (not pages of files).
REPORT = """
with open("/proc/self/status") as file:
    lines = dict(line.split(":", 1) for line in file)
print(lines["VmHWM"].split()[0], lines["RssAnon"].split()[0], flush=True)
"""


def prepare(folder: str) -> None:
    """In a child: the dataset, the row to write, and the tasks of both sides."""
    import lance
    import pyarrow as pa
    import pyarrow.parquet as pq
    from lance.optimize import Compaction

    import lance_tasks as lt

    at = Path(folder)
    uri = at / "data.lance"
    inputs.tiny_fragments(uri, 20)
    pq.write_table(pa.table({"key": [1], "value": [2.0]}), at / "row.parquet")
    specs = {
        "write": lt.Write(at / "new.lance", sources=[at / "row.parquet"]),
        "compact": lt.Compact(uri, target_rows_per_fragment=2 * inputs.TINY_ROWS),
        "create_index": lt.CreateIndex(uri, column="key", index_type="BTREE", num_segments=10),
    }
    for name, spec in specs.items():
        (at / f"{name}.task").write_bytes(lt.plan(lt.prepare(spec))[0].to_bytes())
    options = {"target_rows_per_fragment": 2 * inputs.TINY_ROWS}
    tasks = Compaction.plan(lance.dataset(str(uri)), options).tasks
    (at / "theirs.task").write_text(tasks[0].json())


def fresh(code: str, environment: dict[str, str]) -> dict[str, float]:
    """A Python of its own: seconds until it has the result and says so, peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code + REPORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    said = process.stdout.readline() if process.stdout else ""
    seconds = time.perf_counter() - start
    _, errors = process.communicate()
    if process.returncode != 0 or not said:
        sys.exit(f"start-up failed:\n{code}\n{errors}")
    peak, own = (int(size) * 1024 for size in said.split())
    return {"seconds": seconds, "peak": peak, "own": own}


def several(settings: Settings, environment: dict[str, str], *codes: str) -> list[dict[str, float]]:
    """The medians of each; in turns, after a first time that does not count."""
    answers: list[list[dict[str, float]]] = [[] for _ in codes]
    for turn in range(settings.runs + settings.warm_ups):
        for code, answer in zip(codes, answers, strict=True):
            measured = fresh(code, environment)
            if turn >= settings.warm_ups:
                answer.append(measured)
    return [medians(answer) for answer in answers]


def as_installed(folder: Path) -> dict[str, str]:
    """The environment of workers with both libraries as a machine has them that did not make them.

    A file that was just written lies in the page cache in larger pieces, and each first touch maps
    more of it: the same library counts a fifth more as resident until the machine forgets it. So
    workers get copies, dropped from the cache, which the first of them reads.
    """
    import lance

    library = folder / "liblance_tasks.so"
    shutil.copyfile(os.environ["LANCE_TASKS_LIBRARY"], library)
    package = Path(lance.__file__).parent
    shutil.copytree(package, folder / "site" / "lance")
    for path in (library, *(folder / "site" / "lance").glob("*.so")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    environment = child_environment()
    paths = [str(folder / "site"), environment["PYTHONPATH"]]
    return {
        **environment,
        "LANCE_TASKS_LIBRARY": str(library),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def run(settings: Settings) -> Section:
    section = Section("From the start of Python to the first task's result")
    section.text(
        "`python -c`, from its start until it has the result, with everything in the page cache, "
        "where reading it (not writing it) has put it. "
        "Peak: VmHWM, which counts the pages of the library's file that were mapped; own: what of "
        "the resident set is no file's. Processes on one machine share a file's pages."
    )
    rows = []
    with settings.scratch() as scratch:
        child("start", "prepare", folder=str(scratch))
        environment = as_installed(scratch)
        for name, title in TITLES.items():
            our, their = several(
                settings, environment, OURS.format(scratch, name), THEIRS[name].format(scratch)
            )
            time_ratio = our["seconds"] / their["seconds"]
            memory_ratio = our["peak"] / their["peak"]
            for side, one in zip(SIDES, (our, their), strict=True):
                rows.append([f"{title}, {side}", *figures(one)])
            section.target(
                f"start to first result, {title}: time over pylance's",
                "0.20x",
                f"{time_ratio:.2f}x",
                time_ratio <= 0.2,
            )
            section.target(
                f"start to first result, {title}: peak memory over pylance's",
                "0.35x",
                f"{memory_ratio:.2f}x",
                memory_ratio <= 0.35,
            )
        steps = several(
            settings, environment, *STEPS.values(), "import pyarrow\n", "import lance\n"
        )
        titles = [*STEPS, "Python and `import pyarrow`", "Python and `import lance`"]
        rows += [[title, *figures(one)] for title, one in zip(titles, steps, strict=True)]
    section.table(["Worker", "seconds", "peak memory", "own memory"], rows)
    return section


def figures(one: dict[str, float]) -> list[str]:
    return [ms(one["seconds"]), f"{one['peak'] / 1e6:.1f} MB", f"{one['own'] / 1e6:.1f} MB"]
