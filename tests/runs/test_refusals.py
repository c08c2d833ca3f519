"""What launchers/train.py refuses before the ranks meet: one line, exit code 2, and everything as it was."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dyme.engine import train_engine
from dyme.fault_tolerance.lock import LOCK, Owner
from launchers import train
from tests.helpers.runs import write_config


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """Starts a run of a tiny configuration that must be refused; returns the line."""

    def met(*_: object) -> None:
        raise AssertionError("the ranks met")

    monkeypatch.setattr(train_engine, "init_distributed", met)

    def start(*overrides: str, **changes: object) -> str:
        (tmp_path / "yaml").mkdir(exist_ok=True)
        config = write_config(tmp_path / "yaml", **changes)
        monkeypatch.setattr("sys.argv", ["train.py", "--config", str(config), *overrides])
        assert train.main() == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("error: "), told
        return told[0]

    yield start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_with_the_users_own_export(tmp_path, refused, resume):
    mine = tmp_path / "mine"
    (mine / "export").mkdir(parents=True)
    (mine / "export" / "model.safetensors").write_text("months of work")
    before = tree(mine)
    assert "holds files that are not a run's (export)" in refused(f"run.dir={mine}", f"run.resume={resume}")
    assert tree(mine) == before


def test_a_folder_that_another_start_uses(tmp_path, refused):
    run = tmp_path / "run"
    run.mkdir()
    owner = replace(Owner.here(), token="another")
    (run / LOCK).write_text(json.dumps(asdict(owner)))
    before = tree(run)
    told = refused(f"run.dir={run}", "run.seed=2")
    assert "is in use by another start" in told and f"process {owner.pid}" in told
    assert tree(run) == before


def test_folders_that_cannot_be_made(tmp_path, refused, monkeypatch):
    (tmp_path / "file").touch()
    assert "below" in refused(f"run.dir={tmp_path / 'file' / 'run'}")
    assert "root" in refused("run.dir=/")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()
    assert f"{tmp_path / 'x'} is a file" in refused("run.dir=~/x") and not Path("~").exists()
    monkeypatch.setenv("MINE", str(tmp_path))
    assert f"{tmp_path / 'x'} is a file" in refused("run.dir=$MINE/x")
    assert "variable NONESUCH is not set" in refused("run.dir=$NONESUCH/x")
    assert "no NUL byte" in refused('run.dir="a\\0b"')
