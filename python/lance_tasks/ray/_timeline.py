# SPDX-License-Identifier: Apache-2.0
"""What was done when by which worker: as a trace for Perfetto, and as a picture."""

from __future__ import annotations

import html
import json
import logging
import os

from lance_tasks.errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Places = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

log = logging.getLogger("lance_tasks.ray")

# How an attempt ended, with the colour of its bar.
_COLOURS = {
    "ok": "#4c8bbf",
    "again": "#7a5fb5",
    "failed": "#d9534f",
    "lost": "#222222",
    "cancelled": "#b8b8b8",
}
_MEANING = {
    "ok": "done",
    "again": "done by a further attempt",
    "failed": "failed",
    "lost": "lost with its worker",
    "cancelled": "cancelled: another attempt was faster, or the job ended",
}
_STRAGGLER = 2.0
_LANE = 14
_LEFT = 190
_WIDTH = 1100


class Timeline:
    """Attempts as they ended."""

    def __init__(self) -> None:
        self._attempts: list[dict[str, Any]] = []

    def add(
        self,
        *,
        node: str,
        worker: str,
        task: str,
        kind: str,
        start: float,
        end: float,
        **more: Any,
    ) -> None:
        """Note an attempt.

        Args:
            node: the machine.
            worker: the worker on it.
            task: the task's name.
            kind: ``"ok"``, ``"again"``, ``"failed"``, ``"lost"`` or ``"cancelled"``.
            start, end: seconds since 1970.
            more: further facts.
        """
        self._attempts.append(
            {"node": node, "worker": worker, "task": task, "kind": kind, "start": start}
            | {"end": max(end, start), **more}
        )

    def __len__(self) -> int:
        return len(self._attempts)

    def write(self, files: list[str]) -> None:
        """Write it to each of the files: ``.json`` a trace, ``.svg`` or ``.html`` a picture."""
        for path in files:
            text = _FORMATS[_ending(path)](self)
            try:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
            except OSError as e:
                # The job is done by now, or has an error of its own.
                log.warning("timeline: %s", e)

    def trace(self) -> str:
        """Chrome's trace events, which Perfetto reads as well."""
        rows = self._rows()
        nodes = list(dict.fromkeys(row["node"] for row in rows))
        events: list[dict[str, Any]] = []
        for number, node in enumerate(nodes):
            events.append(_name("process_name", number, 0, f"node {node}"))
        for lane, row in enumerate(rows):
            process = nodes.index(row["node"])
            events.append(_name("thread_name", process, lane, row["worker"]))
            for attempt in row["attempts"]:
                events.append(
                    {
                        "name": attempt["task"],
                        "cat": attempt["kind"],
                        "ph": "X",
                        "pid": process,
                        "tid": lane,
                        "ts": round(attempt["start"] * 1e6),
                        "dur": round((attempt["end"] - attempt["start"]) * 1e6),
                        "args": {k: v for k, v in attempt.items() if k not in ("start", "end")},
                    }
                )
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})

    def svg(self) -> str:
        """Bars by worker; stragglers are framed, what was not done at once is coloured."""
        rows = self._rows()
        begin = min((a["start"] for a in self._attempts), default=0.0)
        span = max((a["end"] for a in self._attempts), default=1.0) - begin or 1.0
        slow = self._slow()
        top = 60
        height = top + _LANE * len(rows) + 30
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" '
            f'height="{height}" font-family="sans-serif" font-size="10">',
            f'<rect width="100%" height="{height}" fill="white"/>',
            f'<text x="8" y="16" font-size="13">{self._title(span)}</text>',
            *_legend(),
        ]
        for lane, row in enumerate(rows):
            y = top + lane * _LANE
            label = html.escape(f"{row['node'][-22:]} {row['worker']}")
            parts.append(f'<text x="8" y="{y + 10}">{label}</text>')
            parts.append(
                f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y + 13}" y2="{y + 13}" '
                'stroke="#eee"/>'
            )
            for attempt in row["attempts"]:
                seconds = attempt["end"] - attempt["start"]
                x = _LEFT + (attempt["start"] - begin) / span * _WIDTH
                width = max(seconds / span * _WIDTH, 0.6)
                frame = ' stroke="#f0ad00" stroke-width="2"' if seconds > slow else ""
                said = ", ".join(
                    f"{key} {value}"
                    for key, value in attempt.items()
                    if key not in ("start", "end") and value is not None
                )
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LANE - 3}" '
                    f'fill="{_COLOURS[attempt["kind"]]}"{frame}>'
                    f"<title>{html.escape(said)}, {seconds:.3f} s</title></rect>"
                )
        for tick in range(11):
            x = _LEFT + tick / 10 * _WIDTH
            anchor = "end" if tick == 10 else "middle" if tick else "start"
            parts.append(
                f'<text x="{x:.0f}" y="{height - 8}" text-anchor="{anchor}">'
                f"{span * tick / 10:.1f} s</text>"
            )
        return "\n".join([*parts, "</svg>"])

    def page(self) -> str:
        """The picture as a page of its own."""
        return (
            '<!DOCTYPE html><html><head><meta charset="utf-8"><title>lance-tasks timeline</title>'
            f"</head><body>{self.svg()}</body></html>"
        )

    def _title(self, span: float) -> str:
        counts = dict.fromkeys(_COLOURS, 0)
        for attempt in self._attempts:
            counts[attempt["kind"]] += 1
        shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return html.escape(f"{len(self._attempts)} attempts in {span:.1f} s: {shown or 'none'}")

    def _slow(self) -> float:
        """Seconds from where on an attempt counts as a straggler."""
        done = sorted(a["end"] - a["start"] for a in self._attempts if a["kind"] in ("ok", "again"))
        return done[len(done) // 2] * _STRAGGLER if len(done) > 2 else float("inf")

    def _rows(self) -> list[dict[str, Any]]:
        """One row for each thing that a worker did at a time."""
        rows: list[dict[str, Any]] = []
        for attempt in sorted(self._attempts, key=lambda a: (a["node"], a["worker"], a["start"])):
            key = (attempt["node"], attempt["worker"])
            for row in rows:
                free = row["attempts"][-1]["end"] <= attempt["start"]
                if (row["node"], row["worker"]) == key and free:
                    row["attempts"].append(attempt)
                    break
            else:
                rows.append({"node": key[0], "worker": key[1], "attempts": [attempt]})
        return rows


def places(timeline: Places | None) -> list[str]:
    """The files that are to be written.

    Raises:
        InvalidArgumentError: a name's ending is none of those that there are, or its folder is not
            there.
    """
    if timeline is None:
        return []
    given = [timeline] if isinstance(timeline, (str, os.PathLike)) else timeline
    files = [os.fspath(place) for place in given]
    for path in files:
        if _ending(path) not in _FORMATS:
            raise InvalidArgumentError(f"timeline: {path!r} ends in none of {', '.join(_FORMATS)}")
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise InvalidArgumentError(f"timeline: {path!r}: there is no such folder")
    return files


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


_FORMATS = {
    ".json": Timeline.trace,
    ".svg": Timeline.svg,
    ".html": Timeline.page,
}


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _legend() -> list[str]:
    parts, x = [], 8.0
    entries = [*((_COLOURS[k], "none", m) for k, m in _MEANING.items())]
    entries.append(("white", "#f0ad00", f"more than {_STRAGGLER:g} times the median"))
    for fill, stroke, meaning in entries:
        parts.append(
            f'<rect x="{x:.0f}" y="28" width="10" height="10" fill="{fill}" stroke="{stroke}"/>'
            f'<text x="{x + 14:.0f}" y="37">{html.escape(meaning)}</text>'
        )
        x += 26 + len(meaning) * 5.2
    return parts
