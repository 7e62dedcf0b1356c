# SPDX-License-Identifier: Apache-2.0
"""What the benches share: settings, measurements in processes of their own, tables."""

import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCHES = Path(__file__).resolve().parent
ROOT = BENCHES.parent
SIDES = ("lance-tasks", "pylance")


@dataclass(frozen=True)
class Settings:
    """How a run goes: `less` times less work than the targets speak of, `runs` measurements."""

    data: Path
    runs: int
    less: int = 1

    @property
    def warm_ups(self) -> int:
        """Measurements that do not count; one run is there to see that it runs."""
        return 1 if self.runs > 1 else 0

    def scaled(self, count: int, least: int = 1) -> int:
        """A count of the full work, made smaller."""
        return max(count // self.less, least)

    def inputs(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of inputs that is made once and kept."""
        folder = self.data / f"{name}-{self.less}"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            (folder / "done").touch()
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for outputs beside the inputs, removed at the end."""
        self.data.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.data, prefix="out-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Target:
    """What was aimed at, and what came out."""

    what: str
    target: str
    measured: str
    met: bool


@dataclass
class Section:
    """One part of the report."""

    title: str
    lines: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.lines += [text, ""]
        print(text, flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column reads from the left, the others are numbers."""
        lines = [row(header), "|---|" + "---:|" * (len(header) - 1), *map(row, rows)]
        self.lines += [*lines, ""]
        print("\n".join(lines), flush=True)

    def target(self, what: str, target: str, measured: str, met: bool) -> None:
        self.targets.append(Target(what, target, measured, met))
        print(f"{what}: {measured} (target {target}): {'met' if met else 'NOT MET'}", flush=True)

    def markdown(self) -> str:
        return "\n".join([f"## {self.title}", "", *self.lines])


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def medians(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each measurement over several runs."""
    return {name: median([answer[name] for answer in answers]) for name in answers[0]}


def child(module: str, function: str, /, **arguments: Any) -> Any:
    """Call a function of a bench in a fresh process; its answer goes through JSON."""
    done = subprocess.run(
        [sys.executable, BENCHES / "bench.py", "--child", module, function, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode != 0:
        sys.exit(f"{module}.{function}({arguments}) failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def answer_child(module: str, function: str, arguments: str) -> None:
    """What `child` starts."""
    answer = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(answer))


def child_environment() -> dict[str, str]:
    """The environment of a user's process: as installed, modules are there as bytecode."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join([*package_path(), str(ROOT / "python")])
    return environment


def find_library() -> None:
    """The built library and the checkout's package, where the environment names no others."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache_folder() / "target")
    os.environ.setdefault("LANCE_TASKS_LIBRARY", str(target / "release" / "liblance_tasks.so"))
    sys.path.insert(1 + len(package_path()), str(ROOT / "python"))


def package_path() -> list[str]:
    """Folders of packages that the environment puts before the checkout's."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lance-tasks"


def status(name: str) -> int:
    """A size of this process in bytes, as /proc/self/status names it: VmHWM, VmRSS, RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
