# SPDX-License-Identifier: Apache-2.0
"""Finding, checking and loading the shared library."""

from __future__ import annotations

import ctypes
import os
import sys

# The ABI that `_ffi` declares; see LANCE_TASKS_ABI_VERSION of the C header.
ABI_VERSION = 1

ENVIRONMENT = "LANCE_TASKS_LIBRARY"
FILE_NAME = "liblance_tasks.dylib" if sys.platform == "darwin" else "liblance_tasks.so"

# As /proc/cpuinfo names what x86-64-v3 has beyond the baseline; "abm" is LZCNT.
_CPU_FLAGS = ("avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "abm")


def find() -> str:
    """The path of the library: `$LANCE_TASKS_LIBRARY`, else the file next to the package.

    Raises:
        ImportError: it is in neither place.
    """
    packaged = os.path.join(os.path.dirname(os.path.abspath(__file__)), FILE_NAME)
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        if not os.path.isfile(chosen):
            raise ImportError(
                f"lance_tasks: ${ENVIRONMENT} names {chosen!r}, which is not a file; "
                f"without it the library is looked for at {packaged!r}"
            )
        return chosen
    if not os.path.isfile(packaged):
        raise ImportError(
            f"lance_tasks: no library at {packaged!r} and ${ENVIRONMENT} is not set; "
            f"install a wheel, or build with cargo and set ${ENVIRONMENT} to {FILE_NAME}"
        )
    return packaged


def check_cpu(cpuinfo: str = "/proc/cpuinfo") -> None:
    """Refuse an x86-64 CPU that the released library would die on.

    Set `LANCE_TASKS_SKIP_CPU_CHECK` for a library that was built for an older CPU.
    """
    if os.environ.get("LANCE_TASKS_SKIP_CPU_CHECK") or sys.platform != "linux":
        return
    if os.uname().machine not in ("x86_64", "amd64"):
        return
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as lines:
            line = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return
    flags = set(line.partition(":")[2].split())
    missing = [flag for flag in _CPU_FLAGS if flag not in flags]
    if flags and missing:
        raise ImportError(
            "lance_tasks: the library needs an x86-64-v3 CPU (Intel Haswell, AMD Excavator or "
            f"later); this one lacks {', '.join(missing)}"
        )


def load() -> ctypes.CDLL:
    """Load the library. Its functions release the GIL; the prototypes are not declared yet.

    Raises:
        ImportError: it is not there, the CPU is too old, or it is of another ABI version.
    """
    path = find()
    check_cpu()
    try:
        library = ctypes.CDLL(path)
    except OSError as e:
        raise ImportError(f"lance_tasks: cannot load {path!r}: {e}") from e
    try:
        version = library.lance_tasks_abi_version
    except AttributeError:
        raise ImportError(f"lance_tasks: {path!r} is not a lance-tasks library") from None
    version.restype = ctypes.c_uint32
    if version() != ABI_VERSION:
        raise ImportError(
            f"lance_tasks: {path!r} has ABI version {version()}, this package needs {ABI_VERSION}; "
            "install the package and the library of one release"
        )
    return library
