# SPDX-License-Identifier: Apache-2.0
"""Data on the command line: shorthand, specs, spools, and where the data goes."""

import json
import subprocess
from pathlib import Path

import blobs
import pyarrow as pa
import pytest
from cli_support import Cli, binary

CONTENTS = [b"zero", None, b"", b"three", b"4" * 300]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    blobs.write(str(tmp_path / "films.lance"), CONTENTS, fragments=2)
    return Cli(tmp_path)


def spec(**what: object) -> str:
    return json.dumps({"operation": "take_blobs", "uri": "films.lance", "column": "film"} | what)


def read(file: Path) -> pa.Table:
    return pa.ipc.open_stream(file.read_bytes()).read_all()


def test_shorthand(cli: Cli) -> None:
    done = cli(
        *("take-blobs", "films.lance", "--column", "film", "--indices", "4,0,1"),
        *("--ranges", '[{"offset": 10, "size": 5}, null, null]', "--output", "out.arrow"),
    )
    assert "read 1 task: 3 rows" in done.stdout
    table = read(cli.folder / "out.arrow")
    assert table.to_pydict() == {"_index": [4, 0, 1], "film": [b"44444", b"zero", None]}
    said = cli.json(
        "take-blobs", "films.lance", "--column=film", "--row-ids=4294967296", "-o", "out.arrow"
    )
    assert (said["rows"], said["tasks"], said["output"]) == (1, 1, "out.arrow")
    assert read(cli.folder / "out.arrow")["film"].to_pylist() == [b"three"]
    # Under the name stands a whole file, or what was there before.
    before = (cli.folder / "out.arrow").read_bytes()
    failed = cli(
        *("take-blobs", "films.lance", "--column=film", "--indices=3,9", "-o", "out.arrow"),
        status=2,
    )
    assert "index 9" in failed.stderr
    assert (cli.folder / "out.arrow").read_bytes() == before
    (cli.folder / "plain").touch()
    assert (cli.folder / "out.arrow").stat().st_mode == (cli.folder / "plain").stat().st_mode
    assert {p.name for p in cli.folder.iterdir()} == {"films.lance", "out.arrow", "plain"}
    assert "--output" in cli("take-blobs", "films.lance", status=2).stderr


def test_standard_output_holds_nothing_but_data(cli: Cli) -> None:
    for more in ([], ["--json"]):
        done = subprocess.run(
            [binary(), "read", "-", "--output", "-", *more],
            cwd=cli.folder,
            input=spec(indices=[3, 2]).encode(),
            capture_output=True,
            check=True,
        )
        table = pa.ipc.open_stream(done.stdout).read_all()
        assert table["film"].to_pylist() == [b"three", b""]
    cli("read", "-", "--output", "/dev/null", stdin=spec(indices=[3]))
    assert Path("/dev/null").is_char_device()


def test_spool(cli: Cli) -> None:
    keys = [3, 0, 4, 1, 2, 0, 3]
    (cli.folder / "spec.json").write_text(spec(indices=keys, max_rows_per_task=2))
    cli("read", "spec.json", "--output", "all.arrow")
    whole = read(cli.folder / "all.arrow")
    assert whole["_index"].to_pylist() == keys
    cli("read", "spec.json", "--set", "indices=[4]", "--output", "one.arrow")
    assert read(cli.folder / "one.arrow")["_index"].to_pylist() == [4]

    cli("prepare", "spec.json", "--spool", "spool")
    assert "4 tasks to read" in cli("plan", "spool").stdout
    cli("read", "spool", "--output", "all.arrow")
    assert read(cli.folder / "all.arrow") == whole
    parts = []
    for i in range(5):
        said = cli.json("read", "spool", "--shard", f"{i}/5", "-o", f"{i}.arrow")
        assert said["tasks"] == (i < 4)
        parts.append(read(cli.folder / f"{i}.arrow"))
    assert pa.concat_tables(parts) == whole
    assert parts[4].num_rows == 0

    for verb in ("run", "commit"):
        failed = cli(verb, "spool", status=2)
        assert "yield data" in failed.stderr, failed.stderr
    assert "lance-tasks read spool" in cli("run", "spool", status=2).stderr
    assert "removed 0 files" in cli("abort", "spool").stdout


def test_what_cannot_be_read(cli: Cli) -> None:
    compact = '{"operation": "compact", "uri": "films.lance"}'
    failed = cli("read", "-", "-o", "x", stdin=compact, status=2)
    assert "compact changes a dataset" in failed.stderr
    (cli.folder / "spec.json").write_text(compact)
    cli("prepare", "spec.json", "--spool", "spool")
    failed = cli("read", "spool", "-o", "x", status=2)
    assert "compact changes a dataset" in failed.stderr
    assert "is no spool" in cli("read", "nowhere", "-o", "x", status=2).stderr
    assert "no spec" in cli("read", "spool", "--set", "a=1", "-o", "x", status=2).stderr
    failed = cli("read", "-", "-o", "no/folder/x", stdin=spec(indices=[0]), status=75)
    assert "no/folder/x" in failed.stderr
    assert not (cli.folder / "x").exists()
