# SPDX-License-Identifier: Apache-2.0
"""Build hook of the wheel: puts the shared library next to the Python package.

Takes `$LANCE_TASKS_PREBUILT_LIB` where it is set, else runs cargo. Its target directory is outside
of the checkout, as in the Makefile, so that it is kept from clone to clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "liblance_tasks.dylib" if sys.platform == "darwin" else "liblance_tasks.so"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        place = root / "python" / "lance_tasks" / LIBRARY
        library = self._library(root)
        if library != place.resolve():
            # A running process may have the old file mapped: replace it, never write into it.
            partial = place.with_name(f".{LIBRARY}")
            shutil.copyfile(library, partial)
            partial.chmod(0o755)
            partial.replace(place)
        # Ignored by git, and so left out unless it is named here.
        build_data["artifacts"].append(str(place.relative_to(root)))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"

    def _library(self, root: Path) -> Path:
        prebuilt = os.environ.get("LANCE_TASKS_PREBUILT_LIB")
        if prebuilt:
            if not os.path.isfile(prebuilt):
                raise FileNotFoundError(f"$LANCE_TASKS_PREBUILT_LIB: no file {prebuilt!r}")
            return Path(prebuilt).resolve()
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        target = os.environ.get("CARGO_TARGET_DIR") or f"{cache}/lance-tasks/target"
        cargo = shutil.which("cargo")
        if cargo is None:
            raise RuntimeError("cargo is not there: install Rust, or set $LANCE_TASKS_PREBUILT_LIB")
        self.app.display_info(f"cargo build --release --lib, into {target} (long, the first time)")
        subprocess.run(
            [cargo, "build", "--release", "--lib", "--locked"],
            cwd=root,
            env={**os.environ, "CARGO_TARGET_DIR": target},
            check=True,
        )
        return (root / target / "release" / LIBRARY).resolve()


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
