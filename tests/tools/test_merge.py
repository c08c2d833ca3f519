"""Merging two exports: averages worked out by hand, files divided otherwise, folders that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dyme.families import load_family
from dyme.tools.merge import main


def write(folder: Path, tensors: dict[str, Tensor], files: list[list[str]] | None = None, **config: object) -> Path:
    """A folder with a config, a vocabulary and a prompt. `files`: the tensors of each weight file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "hidden_size": 2, **config}))
    (folder / "tokenizer.json").write_text('{"vocab": {"a": 0}}')
    (folder / "dyme.json").write_text('{"format": 1}')
    if files is None:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": part for i, part in enumerate(files)}
    for name, part in names.items():
        save_file({tensor: tensors[tensor] for tensor in part}, folder / name)
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in names.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


ONE = {"w": torch.tensor([[1.0, 2.0]]), "v": torch.tensor([4.0]), "n": torch.tensor([3])}
TWO = {"w": torch.tensor([[3.0, -2.0]]), "v": torch.tensor([8.0]), "n": torch.tensor([3])}


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path, Path]:
    return write(tmp_path / "a", ONE), write(tmp_path / "b", TWO), tmp_path / "out"


def run(a: Path, b: Path, out: Path, *more: str) -> int:
    return main([str(a), str(b), "--out", str(out), *more])


@pytest.mark.parametrize(
    ("weight", "w", "v"), [("0.5", [2.0, 0.0], 6.0), ("0.25", [1.5, 1.0], 5.0), ("0", [1, 2], 4), ("1", [3, -2], 8)]
)
def test_weights(pair, weight, w, v):
    assert run(*pair, "--weight", weight) == 0
    merged = load_file(pair[2] / "model.safetensors")
    assert merged["w"].tolist() == [w] and merged["v"].tolist() == [v] and merged["n"].tolist() == [3]
    assert {file.name for file in pair[2].iterdir()} == {file.name for file in pair[0].iterdir()}


def test_bf16_is_averaged_in_float32_and_rounded_once(tmp_path):
    """1 and 1 + 2^-7 (the next number of bf16): a quarter of the way rounds back to 1, three quarters to the other."""
    low, high = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1 + 2**-7, dtype=torch.bfloat16)
    a, b = write(tmp_path / "a", {"w": low}), write(tmp_path / "b", {"w": high})
    for weight, expected in (("0.25", low), ("0.75", high)):
        assert run(a, b, tmp_path / weight, "--weight", weight) == 0
        merged = load_file(tmp_path / weight / "model.safetensors")["w"]
        assert merged.dtype == torch.bfloat16 and torch.equal(merged, expected)


def test_files_that_are_divided_otherwise(tmp_path):
    a = write(tmp_path / "a", ONE, [["w"], ["v", "n"]])
    b = write(tmp_path / "b", TWO, [["n", "w"], ["v"]])
    assert run(a, b, tmp_path / "out") == 0
    first, second = sorted((tmp_path / "out").glob("*.safetensors"))
    assert load_file(first)["w"].tolist() == [[2.0, 0.0]] and load_file(second)["v"].tolist() == [6.0]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["v"] == second.name
    assert run(b, write(tmp_path / "c", ONE), tmp_path / "other") == 0


def change(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


REFUSED = {
    "differ in 'hidden_size'": lambda b: (b / "config.json").write_text('{"model_type": "x", "hidden_size": 4}'),
    "config.json does not exist": lambda b: (b / "config.json").unlink(),
    "token ids mean other things": lambda b: (b / "tokenizer.json").write_text('{"vocab": {"b": 0}}'),
    "holds the tensor v (1 tensors": lambda b: change(b, {name: TWO[name] for name in ("w", "n")}),
    "w is (1, 2) in": lambda b: change(b, TWO | {"w": torch.ones(2, 1)}),
    "w is F32 in": lambda b: change(b, TWO | {"w": TWO["w"].half()}),
    "whole numbers that differ": lambda b: change(b, TWO | {"n": torch.tensor([4])}),
    "it is cut": lambda b: (b / "model.safetensors").write_bytes((b / "model.safetensors").read_bytes()[:-4]),
    "the folder has no weights": lambda b: (b / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(pair, capsys, message):
    a, b, out = pair
    REFUSED[message](b)
    assert run(a, b, out) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("merge: ") and said.count("\n") == 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["a", "b"]


def test_a_folder_that_is_there_is_left_alone(pair, capsys):
    a, b, _ = pair
    assert run(a, b, a) == 2 and "choose a new folder" in capsys.readouterr().err
    assert load_file(a / "model.safetensors")["v"].tolist() == [4.0]


def test_a_prompt_that_differs_is_said(pair, capsys):
    a, b, out = pair
    (b / "dyme.json").write_text('{"format": 1, "family": "y"}')
    assert run(a, b, out) == 0
    assert "dyme.json differs" in capsys.readouterr().err
    assert (out / "dyme.json").read_text() == (a / "dyme.json").read_text()


def test_a_merged_model_opens(checkpoint, tmp_path):
    a, b = checkpoint("smolvlm-v1"), tmp_path / "b"
    shutil.copytree(a, b)
    tensors = load_file(b / "model.safetensors")
    change(b, {name: value + 1 for name, value in tensors.items()})
    assert run(a, b, tmp_path / "out") == 0
    (_, ours), (_, merged) = load_family(a), load_family(tmp_path / "out")
    for name, value in ours.state_dict().items():
        assert torch.allclose(merged.state_dict()[name], value + 0.5, atol=1e-6), name
