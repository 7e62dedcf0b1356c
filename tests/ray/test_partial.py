# SPDX-License-Identifier: Apache-2.0
"""Jobs that end in parts, or begin anew."""

from pathlib import Path

import lance
import nodes
import oracle
import pytest
from cases import CASES
from support import assert_same, read

import lance_tasks as lt
import lance_tasks.ray as ltr


def case_of(name: str, folder: Path):
    (kind,) = [kind for kind in CASES if kind.name == name]
    return kind(folder)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """As long as it is there, tasks are broken."""
    path = tmp_path / "broken"
    path.touch()
    return path


def broken(mark: Path, stage: int, *indices: int) -> dict[str, object]:
    chosen = ",".join(map(str, indices))
    return nodes.hooked("broken", BROKEN=str(mark), STAGE=str(stage), INDICES=chosen)


@pytest.mark.parametrize("spool", [False, True])
def test_every_task_fails(spool: bool, mark: Path, tmp_path: Path) -> None:
    """That is no success."""
    case = case_of("compact", tmp_path)
    place = tmp_path / "spool" if spool else None
    args = broken(mark, 0, 0, 1, 2)
    with pytest.raises(lt.InternalError, match="this task is broken"):
        ltr.run(case.spec, ray_remote_args=args, partial=True, spool=place)
    case.check_untouched()
    oracle.check_no_stray(case.uri)
    mark.unlink()
    assert ltr.run(case.spec, ray_remote_args=args, partial=True, spool=place).complete
    case.check()


def test_what_is_missing_is_done_later(mark: Path, tmp_path: Path) -> None:
    """Segments of a vector index, in several calls: the model that they share is kept."""
    case = case_of("create_vector_index", tmp_path)
    spool = tmp_path / "spool"
    args = broken(mark, 1, 0)
    for _ in range(2):
        outcome = ltr.run(case.spec, ray_remote_args=args, partial=True, spool=spool)
        assert not outcome.complete
        covered = {i.name: i.num_rows_indexed for i in lance.dataset(case.uri).describe_indices()}
        (rows,) = covered.values()
        assert 0 < rows < lance.dataset(case.uri).count_rows()
    mark.unlink()
    assert ltr.run(case.spec, ray_remote_args=args, partial=True, spool=spool).complete
    case.check()
    oracle.check_no_stray(case.uri)


def test_a_part_without_a_spool_leaves_nothing(mark: Path, tmp_path: Path) -> None:
    case = case_of("create_vector_index", tmp_path)
    args = broken(mark, 1, 0)
    assert not ltr.run(case.spec, ray_remote_args=args, partial=True).complete
    oracle.check_no_stray(case.uri)
    assert_same(read(case.uri), case.before)


def test_training_fails(mark: Path, tmp_path: Path) -> None:
    """Nothing of an index is done without its model."""
    case = case_of("create_vector_index", tmp_path)
    with pytest.raises(lt.InternalError, match="this task is broken"):
        ltr.run(case.spec, ray_remote_args=broken(mark, 0, 0), partial=True)
    case.check_untouched()
    oracle.check_no_stray(case.uri)


def test_prepared_again_after_a_part(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed before the dataset moved on is forgotten, and done again."""
    case = case_of("compact", tmp_path)
    real = lt.commit

    def conflict(*given: object, **options: object) -> lt.Outcome:
        if mark.exists():
            mark.unlink()
            raise lt.RetryableConflictError("the dataset has moved on")
        return real(*given, **options)

    monkeypatch.setattr(lt, "commit", conflict)
    outcome = ltr.run(case.spec, ray_remote_args=broken(mark, 0, 1), partial=True)
    assert outcome.complete
    case.check()
    oracle.check_no_stray(case.uri)


def test_a_commit_that_may_have_been_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That says more than that the time is over."""
    case = case_of("compact", tmp_path)

    def unknown(*given: object, **options: object) -> lt.Outcome:
        raise lt.CommitUnknownError("the connection was reset")

    monkeypatch.setattr(lt, "commit", unknown)
    with pytest.raises(lt.CommitUnknownError):
        ltr.run(case.spec, timeout=8, max_retries=100)
    case.check_untouched()
    oracle.check_no_stray(case.uri)
