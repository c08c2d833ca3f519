"""What launchers/train.py refuses before the ranks meet: one line, exit code 2, and everything as it was."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dyme.config import load_config
from dyme.engine import train_engine
from dyme.fault_tolerance.lock import LOCK, Owner
from dyme.provenance.history import DONE, record
from dyme.settings.deepspeed import read_deepspeed
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


def test_everything_else_that_one_process_can_check(tmp_path, refused, monkeypatch):
    run = f"run.dir={tmp_path / 'run'}"
    own = tmp_path / "own.py"
    own.write_text("import nonesuch\n")
    assert "No module named 'nonesuch'" in refused(run, f"reward.user=[{{function: '{own}:f'}}]")
    assert "own2.py" in refused(run, f"reward.user=[{{function: '{tmp_path}/own2.py:f'}}]")
    none = tmp_path / "none"
    assert f"model.path: {none} does not exist" in refused(run, f"model={{path: {none}}}")
    assert "modes.jsonl" in refused(run, f"selector={{name: replay, path: {none}/modes.jsonl}}")
    assert str(none) in refused(run, f"supervision.prompts={none}")
    assert "deepspeed: zero9.json does not exist" in refused(run, "deepspeed=zero9.json")
    ds = tmp_path / "list.json"
    for text in ("[1]", "3", '{"zero_optimization": 3}', "{", '{"zero_optimization": {"stage": 0}}'):
        ds.write_text(text)
        assert f"deepspeed: {ds}" in refused(run, f"deepspeed={ds}")
    model = tmp_path / "model"
    model.mkdir()
    save_file({"weight": torch.zeros(50, 10, dtype=torch.bfloat16)}, model / "model.safetensors")
    monkeypatch.setattr("dyme.opening.free_bytes", lambda folder: 11_999)
    assert "has 11,999 bytes free, checkpoints need 12,000" in refused(run, f"model={{path: {model}}}")
    assert not (tmp_path / "run").exists()


def test_a_link_out_of_the_model_folder(tmp_path, refused):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").symlink_to("/etc/hostname")
    told = refused(f"run.dir={tmp_path / 'run'}", f"model={{path: {tmp_path / 'model'}}}")
    assert "tokenizer.json is a link out of the folder" in told and "run.export=false" in told


def test_a_finished_run_with_other_settings(tmp_path, refused, monkeypatch, capsys):
    run = tmp_path / "run"
    config = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)  # the DeepSpeed JSON is found all the same
    record(run_folder(run), load_config(config, [f"run.dir={run}"]), 0, [], {})
    (run / DONE).touch()
    before = tree(run)
    assert "finished run with other settings (optim.lr)" in refused(f"run.dir={run}", "optim.lr=0.5")
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(config), f"run.dir={run}"])
    assert train.main() == 0 and "nothing to do" in capsys.readouterr().err
    assert tree(run) == before


def run_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["zero2", "zero2.json", "ds_configs/zero2.json"])
def test_deepspeed_jsons_are_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert read_deepspeed(name)["zero_optimization"]["stage"] == 2
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert read_deepspeed(name)["zero_optimization"]["stage"] == (1 if name == "zero2.json" else 2)
