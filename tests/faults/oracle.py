# SPDX-License-Identifier: Apache-2.0
"""What holds of a dataset whatever happened to the job: judged by stock pylance, the source's rows
and a walk over the folder. Nothing here asks the library under test.

Every function raises AssertionError where the dataset is not as it should be.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cases import check_index_answers
from lance.query import MatchQuery

Stray = Callable[[Path], bool]

# What stock pylance leaves beside what its manifests refer to.
HINT = "_versions/latest_version_hint.json"
REFS = "_refs/"

# Seconds until a file that nothing refers to counts as left.
PATIENCE = 2.0


def manifests(uri: str) -> dict[int, Path]:
    """The manifests in the folder, by version. Names count up, or down from 2^64 - 1."""
    found = {}
    for path in Path(uri, "_versions").glob("*.manifest"):
        number = int(path.stem)
        found[number if number < 1 << 63 else (1 << 64) - 1 - number] = path
    return dict(sorted(found.items()))


def files(uri: str) -> dict[str, int]:
    """Every file below the dataset's folder, with its size."""
    root = Path(uri)
    found = {}
    for path in root.rglob("*"):
        try:
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path.stat().st_size
        except FileNotFoundError:  # removed meanwhile
            continue
    return found


def rows(uri: str, version: int | None = None) -> pa.Table:
    """All rows, in order of their key, as one chunk."""
    scanner = lance.dataset(uri, version=version).scanner(blob_handling="all_binary")
    return in_order(scanner.to_table())


def in_order(table: pa.Table) -> pa.Table:
    key = "id" if "id" in table.column_names else table.column_names[0]
    return table.sort_by(key).combine_chunks()


def assert_rows(actual: pa.Table, expected: pa.Table, what: str) -> None:
    """The same rows, each as often; both in order of their key."""
    if actual.equals(expected):
        return
    assert actual.schema.names == expected.schema.names, f"{what}: columns {actual.schema.names}"
    key = expected.column_names[0]
    seen, wanted = actual[key].combine_chunks(), expected[key].combine_chunks()
    lost = wanted.filter(pc.invert(pc.is_in(wanted, seen)))
    extra = seen.filter(pc.invert(pc.is_in(seen, wanted)))
    twice = len(seen) - len(seen.unique())
    differ = [name for name in expected.column_names if not actual[name].equals(expected[name])]
    raise AssertionError(
        f"{what}: {actual.num_rows} rows, not {expected.num_rows}: {len(lost)} lost "
        f"{lost[:5].to_pylist()}, {len(extra)} of nobody {extra[:5].to_pylist()}, {twice} twice; "
        f"columns that differ: {differ}"
    )


@dataclass(frozen=True)
class Version:
    """One version: the bytes of its manifest, and the files that it refers to.

    `files` are relative paths; an index is referred to by its folder, which ends in a slash.
    """

    manifest: str
    files: frozenset[str]


def version(uri: str, number: int, manifest: Path) -> Version:
    data = manifest.read_bytes()
    dataset = lance.dataset(uri, version=number)
    used = set()
    for fragment in dataset.get_fragments():
        used |= {f"data/{file.path}" for file in fragment.data_files()}
        # Payloads of blobs lie in a folder of their data file's name.
        beside = {f"data/{file.path.removesuffix('.lance')}/" for file in fragment.data_files()}
        used |= {folder for folder in beside if Path(uri, folder).exists()}
        if (deletions := fragment.deletion_file()) is not None:
            used.add(deletions)
    for index in dataset.describe_indices():
        for segment in index.segments:
            # The record of how rows moved may stand in the manifest; other indices have a folder.
            folder = f"_indices/{segment.uuid}/"
            if not index.name.startswith("__lance") or Path(uri, folder).exists():
                used.add(folder)
    # pylance does not show the transaction's file; its name stands in the manifest as it is.
    for path in Path(uri, "_transactions").glob("*.txn"):
        if path.name.encode() in data:
            used.add(f"_transactions/{path.name}")
    return Version(hashlib.sha256(data).hexdigest(), frozenset(used))


def changes(uri: str, since: int) -> list[int]:
    """The versions after `since` whose fragments are not those of the one before."""
    changed, last = [], None
    for number in manifests(uri):
        if number >= since:
            fragments = lance.dataset(uri, version=number).get_fragments()
            now = [fragment.metadata.to_json() for fragment in fragments]
            if last is not None and now != last:
                changed.append(number)
            last = now
    return changed


class Snapshot:
    """A dataset (or its absence) at one moment."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.files = files(uri)
        self.versions = {
            number: version(uri, number, path) for number, path in manifests(uri).items()
        }
        self.latest = max(self.versions, default=0)
        self.rows = rows(uri) if self.versions else None

    def check_kept(self, gone: Iterable[int] = ()) -> None:
        """Every version that was there is there (but for `gone`), as it was, with all its files."""
        now, listing = manifests(self.uri), files(self.uri)
        for number, before in self.versions.items():
            if number in gone:
                continue
            assert number in now, f"version {number} is gone"
            digest = hashlib.sha256(now[number].read_bytes()).hexdigest()
            assert digest == before.manifest, f"the manifest of version {number} has changed"
            folders = tuple(name for name in before.files if name.endswith("/"))
            for name, size in self.files.items():
                if name in before.files or (folders and name.startswith(folders)):
                    assert name in listing, f"{name} of version {number} is gone"
                    assert listing[name] == size, f"{name} has another size"
        if self.rows is not None and self.latest not in gone:
            what = f"version {self.latest}, the newest before"
            assert_rows(rows(self.uri, self.latest), self.rows, what)


def check_states(snapshot: Snapshot, states: list[pa.Table], final: pa.Table | None) -> None:
    """The newest version holds `final` (None: there is none), and each version since the snapshot
    one of `states`: the whole of a job, or nothing of it."""
    uri = snapshot.uri
    now = manifests(uri)
    if final is None:
        assert not now, f"there is a dataset, at version {max(now)}"
        return
    assert now, "there is no dataset"
    known = lance.dataset(uri).versions()
    assert [entry["version"] for entry in known] == list(now), "versions and manifests differ"
    for number in now:
        if number <= snapshot.latest:
            continue
        seen = rows(uri, number)
        if not any(seen.equals(state) for state in states):
            closest = min(states, key=lambda state: abs(state.num_rows - seen.num_rows))
            assert_rows(seen, closest, f"version {number} is of no allowed state, the nearest")
    assert_rows(rows(uri), final, "the newest version")
    dataset = lance.dataset(uri)
    dataset.validate()
    assert dataset.count_rows() == final.num_rows


def unreferenced(uri: str, allowed: Stray | None = None) -> list[str]:
    """Files below the folder that no version's manifest refers to, directly or by their folder."""
    known = manifests(uri)
    named = {path.relative_to(uri).as_posix() for path in known.values()} | {HINT}
    for number, path in known.items():
        named |= version(uri, number, path).files
    if not known:
        named = set()
    folders = tuple(name for name in named if name.endswith("/"))
    return [
        name
        for name in sorted(files(uri))
        if name not in named
        and not name.startswith((*folders, REFS))
        and not (allowed and allowed(Path(uri, name)))
    ]


def check_no_stray(uri: str, allowed: Stray | None = None) -> None:
    """Every file is referred to by some version.

    Lance unlinks temporary files of given-up writes a moment later, on another thread.
    """
    until = time.monotonic() + PATIENCE
    while left := unreferenced(uri, allowed):
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    else:
        return
    sizes = files(uri)
    raise AssertionError(
        "files that no version refers to: " + ", ".join(f"{f} ({sizes.get(f)} B)" for f in left)
    )


def check_files_exist(uri: str) -> None:
    """Everything that any version refers to is there."""
    listing = files(uri)
    for number, path in manifests(uri).items():
        for file in version(uri, number, path).files:
            found = any(f.startswith(file) for f in listing) if file[-1] == "/" else file in listing
            assert found, f"version {number} refers to {file}, which is not there"


def check_untouched(snapshot: Snapshot, allowed: Stray | None = None) -> None:
    """The dataset is as it was, and no file is left of what was tried."""
    check_states(snapshot, [] if snapshot.rows is None else [snapshot.rows], snapshot.rows)
    snapshot.check_kept()
    check_no_stray(snapshot.uri, allowed)


def coverage(uri: str, name: str) -> tuple[int, set[int]]:
    """How many segments an index has in the newest version, and which fragments they cover."""
    for index in lance.dataset(uri).describe_indices():
        if index.name == name:
            covered = [f for segment in index.segments for f in segment.fragment_ids]
            assert len(covered) == len(set(covered)), f"segments of {name} overlap: {covered}"
            return len(index.segments), set(covered)
    return 0, set()


def check_index(uri: str, name: str, column: str, rng: random.Random) -> None:
    """The index is used, and answers as a scan does."""
    dataset = lance.dataset(uri)
    kinds = {index.name: index.index_type.upper() for index in dataset.describe_indices()}
    assert name in kinds, f"there is no index {name}"
    if kinds[name] == "INVERTED":
        check_words(dataset, column, rng)
    elif kinds[name].startswith("IVF"):
        check_vectors(dataset, column, rng)
    else:
        check_keys(dataset, column, rng)


def check_keys(dataset: lance.LanceDataset, column: str, rng: random.Random) -> None:
    values = dataset.to_table(columns=[column])[column].unique().to_pylist()
    chosen = [value for value in rng.sample(values, min(8, len(values))) if value is not None]
    literals = [repr(value) for value in chosen]
    low, high = sorted(chosen[:2])
    filters = [
        f"{column} = {literals[0]}",
        f"{column} in ({', '.join(literals)})",
        f"{column} >= {low!r} and {column} < {high!r}",
        f"{column} = " + ("-1" if isinstance(chosen[0], int) else "'nobody'"),
    ]
    check_index_answers(dataset, column, filters)


def check_words(dataset: lance.LanceDataset, column: str, rng: random.Random) -> None:
    """Rows found by a word are those that have it; a word stands between hyphens."""
    table = dataset.to_table(columns=["id", column])
    having: dict[str, set[int]] = {}
    for key, value in zip(*(table[name].to_pylist() for name in ("id", column)), strict=True):
        for word in (value or "").split("-"):
            having.setdefault(word, set()).add(key)
    having.pop("", None)
    for word in [*rng.sample(sorted(having), 6), "name", "nobody"]:
        query = MatchQuery(word, column)
        plan = dataset.scanner(full_text_query=query).explain_plan()
        assert " MatchQuery: " in plan, f"{word!r} does not use the index:\n{plan}"
        wanted = {"columns": ["id", "_score"], "limit": len(table)}
        found = dataset.to_table(full_text_query=query, **wanted)
        ids = found["id"].to_pylist()
        assert len(ids) == len(set(ids)), f"{word!r}: rows twice"
        wrong = sorted(set(ids) ^ having.get(word, set()))
        assert not wrong, f"{word!r}: {len(wrong)} rows lost or of nobody, {wrong[:5]}"


def check_vectors(dataset: lance.LanceDataset, column: str, rng: random.Random) -> None:
    """With every partition probed, and enough of them looked at exactly, the nearest are those of a
    scan, each at its true distance."""
    table = dataset.to_table(columns=["id", column])
    ids = table["id"].to_numpy()
    vectors = table[column].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    rows = {key: at for at, key in enumerate(ids.tolist())}
    for at in rng.sample(range(len(ids)), 4):
        query = vectors[at] + rng.uniform(-100, 100)
        wanted = {"column": column, "q": query, "k": 5, "nprobes": 1000, "refine_factor": 200}
        scanner = dataset.scanner(columns=["id", "_distance"], nearest=wanted)
        plan = scanner.explain_plan()
        assert "ANNSubIndex" in plan, f"the search does not use the index:\n{plan}"
        found = scanner.to_table()
        near = found["id"].to_pylist()
        assert len(near) == len(set(near)) == 5, f"{near}: rows twice, or too few"
        true = ((vectors.astype("float64") - query) ** 2).sum(axis=1)
        of_found = true[[rows[key] for key in near]]
        assert np.allclose(found["_distance"].to_numpy(), of_found, rtol=1e-3), (near, of_found)
        nearest = np.sort(true)[:5]
        assert np.allclose(np.sort(of_found), nearest, rtol=1e-3), (near, of_found, nearest)
