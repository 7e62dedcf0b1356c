# SPDX-License-Identifier: Apache-2.0
"""Where things are found, and what this machine allows. To be imported before the others."""

import functools
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON_TESTS = HERE.parent / "python"

# Paths, and the library, as the other tests have them.
_shared = runpy.run_path(str(PYTHON_TESTS / "conftest.py"))
ROOT, built_library = _shared["ROOT"], _shared["built_library"]
for folder in (PYTHON_TESTS, HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def mount(folder: Path, size: int) -> None:
    """A file system in memory of `size` bytes at an empty folder; `umount` takes it away."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def umount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True, text=True)


@functools.cache
def can_mount() -> bool:
    """May this process mount file systems, as root or in a name space of its own?"""
    if os.environ.get("FAULTS_NO_MOUNT") or shutil.which("mount") is None:
        return False
    folder = Path(tempfile.mkdtemp())
    try:
        mount(folder, 1 << 20)
        umount(folder)
    except subprocess.CalledProcessError:
        return False
    finally:
        folder.rmdir()
    return True


@functools.cache
def can_unshare() -> bool:
    """May a child mount file systems in a name space of its own, without being root here?"""
    if os.environ.get("FAULTS_NO_MOUNT") or shutil.which("unshare") is None:
        return False
    script = 'd=$(mktemp -d) && mount -t tmpfs tmpfs "$d" && umount "$d" && rmdir "$d"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(command, capture_output=True).returncode == 0


IN_NAME_SPACE = ["unshare", "--user", "--map-root-user", "--mount"]
