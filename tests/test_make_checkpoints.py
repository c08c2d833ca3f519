"""The command that writes random checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.checkpoints.common import Tiny
from dyme.families import ModelError, load_family, open_family
from dyme.families.files import read_weights
from tests import make_checkpoints
from tests.helpers.checkpoints import makers
from tests.helpers.launching import ROOT


def test_from_the_repository_root(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.make_checkpoints", str(tmp_path), "--only", "llama"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in (tmp_path / "llama").iterdir())
    assert done.stdout == f"{tmp_path}/llama  causal_lm  {size / 1e6:.2f} MB\n"
    assert load_family(tmp_path / "llama")[0].name == "causal_lm"


def test_all_of_them(tmp_path, capsys):
    assert make_checkpoints.main([str(tmp_path)]) == 0
    assert {folder.name for folder in tmp_path.iterdir()} == set(makers())
    assert len(capsys.readouterr().out.splitlines()) == len(makers())


def test_an_unknown_name(tmp_path, capsys):
    assert make_checkpoints.main([str(tmp_path), "--only", "lama"]) == 1
    assert capsys.readouterr().err.startswith("--only: no checkpoint 'lama'; nearest: llama; there are ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama", "smolvlm-v1"])
def test_shapes(tmp_path, monkeypatch, name):
    """A configuration becomes a folder without weights, or with random ones."""
    family, make = makers()[name]
    tiny = make()
    shapes = {name: (family, lambda: Tiny(tiny.model.config, tiny.tokenizer, tiny.files))}
    monkeypatch.setattr(make_checkpoints, "makers", {"SHAPES": shapes}.__getitem__)
    assert make_checkpoints.main([str(tmp_path), "--shapes"]) == 0
    assert open_family(tmp_path / name).name == family
    with pytest.raises(ModelError, match="the folder has no weights"):
        load_family(tmp_path / name)
    assert make_checkpoints.main([str(tmp_path), "--shapes", "--weights"]) == 0
    assert set(read_weights(tmp_path / name).values) == {"BF16"}
    model = load_family(tmp_path / name, dtype="bf16")[1]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(float(p.detach().float().std()) > 0 for p in model.parameters())
