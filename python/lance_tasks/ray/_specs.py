# SPDX-License-Identifier: Apache-2.0
"""Specs, before they are prepared somewhere else or kept in a spool."""

from __future__ import annotations

import os

from lance_tasks.errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The library's default of max_rows_per_file.
_MAX_ROWS = 1 << 20


def absolute(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec with local paths made absolute: they begin in this process's folder."""
    spec = {**spec, "uri": _place(spec.get("uri"))}
    for name in ("initial_bases", "bases"):
        if spec.get(name):
            spec[name] = [{**base, "path": _place(base["path"])} for base in spec[name]]
    if spec.get("sources"):
        spec["sources"] = [
            {**source, "uri": _place(source.get("uri"))}
            if isinstance(source, dict)
            else _place(source)
            for source in spec["sources"]
        ]
    return spec


def _place(path: Any) -> Any:
    if not isinstance(path, str) or not path or "://" in path:
        return path  # what is wrong is said by `prepare`
    # A folder's last slash says that it is one.
    return os.path.abspath(path) + ("/" if path.endswith("/") and path.strip("/") else "")


def whole_files(spec: dict[str, Any], min_rows: int | None) -> dict[str, Any]:
    """What was put together is not cut into a large file and a small one.

    Raises:
        InvalidArgumentError: `min_rows` is out of range.
    """
    if min_rows is None:
        return spec
    if min_rows < 1:
        raise InvalidArgumentError(f"min_rows_per_file: {min_rows}; at least 1")
    if spec.get("max_rows_per_file") is None:
        return {**spec, "max_rows_per_file": max(_MAX_ROWS, 2 * min_rows)}
    if spec["max_rows_per_file"] < min_rows:
        raise InvalidArgumentError(
            f"min_rows_per_file: {min_rows} is more than max_rows_per_file, "
            f"{spec['max_rows_per_file']}"
        )
    return spec
