"""What the benchmark of kills calls a loss."""

from __future__ import annotations

import os

import pytest

from tests.stress.kills import Start, verdict

GOOD = {
    "kills": 9,
    "inside_a_checkpoint": 4,
    "most_lost_steps": 3,
    "save_every": 3,
    "damaged_files": 0,
    "orphans": 0,
    "slowest_end_s": 2.5,
    "wrong_starts": [],
    "finished_runs": 2,
    "finished_with_the_same_parameters": 2,
}


def test_nothing_lost():
    assert verdict(GOOD)[-1] == "nothing lost"
    assert "9 kills (4 inside a checkpoint): at most 3 steps lost (a checkpoint every 3)" in verdict(GOOD)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"most_lost_steps": 4},
        {"damaged_files": 1},
        {"orphans": 1},
        {"wrong_starts": ["start 2 began at 0 instead of 3"]},
        {"finished_with_the_same_parameters": 1},
        {"finished_runs": 0, "finished_with_the_same_parameters": 0},
    ],
)
def test_any_loss_is_a_failure(change):
    assert verdict(GOOD | change)[-1] == "FAILED"


def test_what_an_earlier_start_left_is_not_a_checkpoint_under_way(tmp_path):
    start = object.__new__(Start)
    start.run, start.began = tmp_path, 1000.0
    for name, mtime in ((".partial-step-00000003", 999.0), (".partial-step-00000006", 1001.0)):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        os.utime(folder, (mtime, mtime))
    assert start.half_written() == {".partial-step-00000006"}
