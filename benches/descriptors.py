# SPDX-License-Identifier: Apache-2.0
"""How large a task's descriptor is, by how many fragments it touches."""

import json
from pathlib import Path

import inputs
from common import Section, Settings, child

FRAGMENTS = (1, 2, 10, 100, 1_000)
FIXED, PER_FRAGMENT = 500, 300
ENCODINGS = {"binary": "binary", "json": "JSON"}
WIDE = 10_000  # bytes of a schema that is most of its task


def sizes(folder: str) -> list[dict]:
    """In a child: operation, fragments, and bytes of a task in both encodings."""
    import lance
    import pyarrow as pa

    import lance_tasks as lt

    answer = []

    def note(what: str, fragments: int, task: lt.Task, schema: int = 0) -> None:
        answer.append(
            {
                "what": what,
                "fragments": fragments,
                "schema": schema,
                "binary": len(task.to_bytes()),
                "json": len(task.to_json().encode()),
            }
        )

    uri = Path(folder) / "tiny.lance"
    inputs.tiny_fragments(uri, 2 * FRAGMENTS[-1])
    for count in FRAGMENTS[1:]:
        spec = lt.Compact(uri, target_rows_per_fragment=count * inputs.TINY_ROWS)
        task = lt.plan(lt.prepare(spec))[-1]
        touched = json.loads(task.to_json())["task"]["work"]["compact"]["fragments"]
        note("compact", len(touched), task)
    for count in FRAGMENTS:
        spec = lt.CreateIndex(
            uri, column="key", index_type="BTREE", num_segments=2 * FRAGMENTS[-1] // count
        )
        note("create_index", count, lt.plan(lt.prepare(spec))[-1])

    eight = inputs.numbers(1_000)
    wide = pa.table({f"column_{i}": eight["key"] for i in range(1_000)})
    for columns, table in ((8, eight), (1_000, wide)):
        schema = len(table.schema.serialize())
        job = lt.prepare(lt.Write(Path(folder) / "open.lance", partitions=["a"]), table.schema)
        note(f"write of a stream, {columns} columns", 1, job.task("a"), schema)
        source = Path(folder) / f"source-{columns}.lance"
        lance.write_dataset(table, source, max_rows_per_file=100)
        for rows in (100, 1_000):
            spec = lt.Write(
                Path(folder) / "planned.lance",
                sources=[lt.Source(source)],
                max_rows_per_file=rows,
                max_rows_per_task=rows,
            )
            what = f"write of {rows // 100} fragments of a dataset, {columns} columns"
            note(what, rows // 100 + 1, lt.plan(lt.prepare(spec))[0], schema)
    return answer


def run(settings: Settings) -> Section:
    section = Section("Size of a task's descriptor")
    with settings.scratch() as scratch:
        measured = child("descriptors", "sizes", folder=str(scratch))
    section.text(
        f"Bytes of a task; {FIXED} and {PER_FRAGMENT} for each fragment that it touches are "
        "allowed: those that it reads, and for a write the one that it makes. JSON with its "
        "envelope and indentation. A write task carries the schema to which its rows are aligned, "
        "as Arrow IPC, in JSON as base64: of 1,000 columns it is most of the task, and no "
        "fixed number of bytes can hold it."
    )
    rows = []
    for one in measured:
        allowed = FIXED + PER_FRAGMENT * one["fragments"]
        rows.append(
            [
                one["what"],
                f"{one['fragments']}",
                f"{one['binary']}",
                f"{one['json']}",
                f"{one['schema'] or ''}",
                f"{allowed}",
                *("yes" if one[encoding] <= allowed else "**no**" for encoding in ENCODINGS),
            ]
        )
    header = ["Task", "fragments", "binary", "JSON", "schema (IPC)", "allowed"]
    section.table([*header, "binary within", "JSON within"], rows)
    for encoding, name in ENCODINGS.items():
        shares = {
            one[encoding] / (FIXED + PER_FRAGMENT * one["fragments"]): one["what"]
            for one in measured
            if one["schema"] < WIDE
        }
        worst = max(shares)
        section.target(
            f"a task in {name}, 8 columns: most of {FIXED} bytes and {PER_FRAGMENT} per fragment",
            "100 %",
            f"{worst * 100:.0f} % ({shares[worst]})",
            worst <= 1,
        )
    return section
