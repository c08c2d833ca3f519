"""Which checkpoints count, which are kept, and what a manifest finds: the files alone, with an engine that is one rank
of none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dyme.checkpoint import store
from dyme.checkpoint.manifest import MANIFEST, damage, files_in, listed, measure, share_of, write_manifest
from dyme.checkpoint.universal import group_settings, restore_groups
from tests.helpers.broken_files import flip

ALONE = SimpleNamespace(rank=0, world_size=1, gather_json=lambda value: [value], barrier=lambda: None)


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        path = store.checkpoint_dir(folder, step)
        (path / "deep").mkdir(parents=True)
        (path / "weights.pt").write_bytes(bytes([step]) * 1000)
        (path / "deep" / "more.pt").write_bytes(b"y" * step)
        (path / store.STATE).write_text("{}")
        write_manifest(path, measure(path, files_in(path)), {"step": step})


def newest(folder: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    return store.newest_whole(ALONE, folder, said.append), said


def test_only_renamed_folders_count(tmp_path):
    assert store.steps(tmp_path / "none") == []
    make(tmp_path, 5, 100, 20)
    (tmp_path / f"{store.PARTIAL}step-00000400").mkdir()
    (tmp_path / f"{store.DAMAGED}step-00000300").mkdir()
    (tmp_path / "latest").write_text("step-00000500")
    assert store.steps(tmp_path) == [5, 20, 100]


def test_the_newest_and_the_best_are_kept(tmp_path):
    make(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / f"{store.PARTIAL}step-00000006").mkdir()
    (tmp_path / f"{store.DAMAGED}step-00000006").mkdir()
    store.mark_best(tmp_path, 2, 0.75)
    store.prune(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [f"step-0000000{i}" for i in (2, 4, 5)]
    store.mark_best(tmp_path, 5, 0.8)
    store.prune(tmp_path, keep_last=2)
    assert store.steps(tmp_path) == [4, 5]


def test_a_half_removed_checkpoint_does_not_count(tmp_path, monkeypatch):
    """Killed while old checkpoints are removed: what is left of them is no checkpoint, and goes at the next save."""
    make(tmp_path, 1, 2, 3)
    monkeypatch.setattr(store.shutil, "rmtree", lambda path, **_: next(path.glob("*.pt")).unlink())
    store.prune(tmp_path, keep_last=2)
    assert store.steps(tmp_path) == [2, 3] and len(list(tmp_path.iterdir())) == 3
    monkeypatch.undo()
    store.prune(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_best_of_later_steps_is_forgotten_on_resume(tmp_path):
    assert store.best(tmp_path) == (-1, -1.0)
    store.mark_best(tmp_path, 40, 0.5)
    assert store.best(tmp_path) == (40, 0.5)
    assert store.best(tmp_path, up_to=40) == (40, 0.5)
    assert store.best(tmp_path, up_to=30) == (-1, -1.0)


def test_ranks_share_the_files():
    names = [f"f{i}" for i in range(7)]
    parts = [share_of(reversed(names), rank, 3) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == names and [len(p) for p in parts] == [3, 2, 2]


DAMAGES = {
    "a bit": (lambda p: flip(p / "weights.pt"), "weights.pt has changed since it was written (hash)"),
    "a bit of our state": (lambda p: flip(p / store.STATE), "state.json has changed"),
    "cut": (lambda p: (p / "deep" / "more.pt").write_bytes(b"y"), "deep/more.pt has 1 bytes instead of 9"),
    "gone": (lambda p: (p / "weights.pt").unlink(), "weights.pt is missing"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda p: (p / MANIFEST).write_text('{"files": {'), "manifest.json cannot be read"),
    "another manifest": (lambda p: (p / MANIFEST).write_text('{"files": [1]}'), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, kind):
    make(tmp_path, 4, 9)
    breaks, told = DAMAGES[kind]
    breaks(tmp_path / "step-00000009")
    step, said = newest(tmp_path)
    assert step == 4
    assert said[0].startswith("step-00000009 is damaged: ") and told in said[0] and "trying the one before" in said[0]
    assert said[1].startswith("step-00000004: 3 files verified, ") and said[1].endswith(" s")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["damaged-step-00000009", "step-00000004"]  # step 9 can be written anew


def test_nothing_is_set_aside_where_no_checkpoint_is_whole(tmp_path):
    make(tmp_path, 4, 9)
    (tmp_path / "step-00000004" / "weights.pt").unlink()
    flip(tmp_path / "step-00000009" / "weights.pt")
    with pytest.raises(store.CheckpointError) as error:
        newest(tmp_path)
    message = str(error.value)
    assert "step-00000009 (weights.pt has changed" in message and "step-00000004 (weights.pt is missing)" in message
    assert "restore one of them from a copy" in message and "\n" not in message
    assert store.steps(tmp_path) == [4, 9]


def test_no_checkpoint_is_no_damage(tmp_path):
    assert newest(tmp_path / "none") == (None, [])
    make(tmp_path, 3)
    assert newest(tmp_path)[0] == 3


def test_a_checkpoint_that_was_not_finished_is_named(tmp_path):
    make(tmp_path, 3)
    (tmp_path / f"{store.PARTIAL}step-00000006").mkdir()
    (tmp_path / f"{store.PARTIAL}old-step-00000002").mkdir()
    step, said = newest(tmp_path)
    assert step == 3 and said[0] == "step-00000006 was not finished: left out" and "step-00000003" in said[1]


def test_a_step_that_was_saved_before_is_not_written_again(tmp_path):
    """The best checkpoint and the one that is due at the same step: no DeepSpeed is asked, old ones go."""
    make(tmp_path, 1, 2, 3)
    assert store.save(ALONE, tmp_path, store.TrainState(3, 1.0, 1), 1) == tmp_path / "step-00000003"
    assert store.steps(tmp_path) == [3]


def test_a_manifest_says_what_was_measured(tmp_path):
    make(tmp_path, 7)
    path = tmp_path / "step-00000007"
    entries, wrong = listed(path)
    assert wrong == [] and sorted(entries) == ["deep/more.pt", "state.json", "weights.pt"]
    assert entries["deep/more.pt"]["size"] == 7 and damage(path, entries) == []
    assert json.loads((path / MANIFEST).read_text())["step"] == 7


def test_groups_get_their_own_settings_and_steps_back():
    """What DeepSpeed's universal loading mixes up."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [a], "weight_decay": 0.1, "lr": 1e-3}, {"params": [b], "weight_decay": 0.0, "lr": 2e-3}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    saved = json.loads(json.dumps(group_settings(optimizer)))
    optimizer.param_groups[1].update(weight_decay=0.1, lr=1e-3, betas=(0.5, 0.5))
    shared = torch.tensor(3.0)
    for p in (a, b):
        optimizer.state[p] = {"step": shared, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    restore_groups(optimizer, saved)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 2e-3]
    assert [g["betas"] for g in optimizer.param_groups] == [(0.9, 0.95)] * 2
    a.grad = b.grad = torch.ones(2)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in (a, b)] == [4.0, 4.0]  # shared, both would be 5


def test_what_has_another_name_is_never_pruned(tmp_path):
    make(tmp_path, 1, 2, 3)
    names = (".partial-notes", "damaged-goods", "mine", "step-3", ".partial-universal-x")
    for name in names:
        (tmp_path / name).mkdir()
    store.prune(tmp_path, keep_last=1)
    assert {p.name for p in tmp_path.iterdir()} == {*names, "step-00000003"}


@pytest.mark.parametrize("torn", [b"", b"\0" * 20, b'{"step": 4', b"[]", b'{"step": "x", "accuracy": 1}', b"\xff"])
def test_a_torn_best_is_none(tmp_path, torn):
    (tmp_path / store.BEST).write_bytes(torn)
    assert store.best(tmp_path) == (-1, -1.0)
    make(tmp_path, 1, 2)
    store.prune(tmp_path, keep_last=1)
    assert store.steps(tmp_path) == [2]
