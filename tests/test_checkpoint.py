"""Which checkpoints count, which are kept: the files alone, without an engine."""

from __future__ import annotations

from pathlib import Path

from dyme import checkpoint


def make(folder: Path, *steps: int, whole: bool = True) -> None:
    for step in steps:
        path = checkpoint.checkpoint_dir(folder, step)
        path.mkdir(parents=True)
        (path / "weights.pt").write_bytes(b"x")
        if whole:
            (path / checkpoint.STATE).write_text("{}")


def test_only_whole_checkpoints_count(tmp_path):
    assert checkpoint.steps(tmp_path / "none") == []
    make(tmp_path, 5, 100, 20)
    make(tmp_path, 300, whole=False)
    (tmp_path / f"{checkpoint.PARTIAL}step-00000400").mkdir()
    (tmp_path / "latest").write_text("step-00000500")
    assert checkpoint.steps(tmp_path) == [5, 20, 100]


def test_the_newest_and_the_best_are_kept(tmp_path):
    make(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / f"{checkpoint.PARTIAL}step-00000006").mkdir()
    checkpoint.mark_best(tmp_path, 2, 0.75)
    checkpoint.prune(tmp_path, keep_last=2)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert not list(tmp_path.glob(f"{checkpoint.PARTIAL}*"))
    checkpoint.mark_best(tmp_path, 5, 0.8)
    checkpoint.prune(tmp_path, keep_last=2)
    assert checkpoint.steps(tmp_path) == [4, 5]


def test_the_best_of_later_steps_is_forgotten_on_resume(tmp_path):
    assert checkpoint.best(tmp_path) == (-1, -1.0)
    checkpoint.mark_best(tmp_path, 40, 0.5)
    assert checkpoint.best(tmp_path) == (40, 0.5)
    assert checkpoint.best(tmp_path, up_to=40) == (40, 0.5)
    assert checkpoint.best(tmp_path, up_to=30) == (-1, -1.0)
