"""Damaged checkpoints of several families: one line that names the file and the mend, before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoTokenizer

from dyme.families import FAMILIES, IMAGE, ModelError, load_family, open_family
from dyme.families.files import chat_template_file, read_weights
from dyme.rollout.types import RolloutRequest, Sampling
from tests.helpers.checkpoints import makers
from tests.helpers.generating import generate

VISION = [name for name, (family, _) in sorted(makers().items()) if FAMILIES[family].modalities]
NAMES = ["llama", *VISION]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(params=NAMES)
def folder(request, checkpoint, tmp_path) -> Path:
    """A copy of a tiny checkpoint."""
    return Path(shutil.copytree(checkpoint(request.param), tmp_path / "model"))


@pytest.fixture
def plain(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))


def refused(folder: Path, monkeypatch) -> str:
    """The line, and proof that nothing was loaded for it."""
    for family in FAMILIES.values():
        monkeypatch.setattr(family, "load_model", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(ModelError) as caught:
        load_family(folder)
    message = str(caught.value)
    assert "\n" not in message and message.count(str(folder)) == 1, message
    return message


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(file.read_text(encoding="utf-8"))
    change(fields)
    file.write_text(json.dumps(fields), encoding="utf-8")


def shard(folder: Path) -> list[str]:
    """Splits the weights into two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in files.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()
    return list(files)


def test_undamaged_copies_load(folder):
    load_family(folder)
    whole = read_weights(folder)
    shard(folder)
    parts = read_weights(folder)
    assert parts.shapes == whole.shapes and parts.values == whole.values and len(parts.files) == 2
    load_family(folder)


# --- processor, tokenizer, chat template ----------


@pytest.mark.parametrize("folder", VISION, indirect=True)
def test_a_missing_processor(folder, monkeypatch):
    (folder / "preprocessor_config.json").unlink()
    assert f"{folder}/preprocessor_config.json does not exist, " in refused(folder, monkeypatch)
    (folder / "processor_config.json").unlink(missing_ok=True)
    message = refused(folder, monkeypatch)
    assert "preprocessor_config.json does not exist, nor processor_config.json: copy it" in message


NEED_SETTINGS = [name for name in VISION if not name.startswith("qwen")]
"""Checkpoints that are published with a processor_config.json."""


@pytest.mark.parametrize("folder", NEED_SETTINGS, indirect=True)
def test_missing_settings_of_the_processor(folder, monkeypatch):
    """Its defaults are those of another model: every record would fail."""
    (folder / "processor_config.json").unlink()
    message = refused(folder, monkeypatch)
    assert f"{folder}: processor_config.json does not exist, and without it no picture can be encoded (" in message
    assert message.endswith("): copy it from the original checkpoint again")


@pytest.mark.parametrize("name", ["smolvlm-v1", "llava-onevision"])
def test_settings_of_another_processor(checkpoint, tmp_path, monkeypatch, name):
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "model"))
    key = {"smolvlm-v1": "image_seq_len", "llava-onevision": "num_image_tokens"}[name]
    edit(folder / "processor_config.json", lambda fields: fields.update({key: 9}))
    assert " image features: the processor's files do not fit config.json, copy both " in refused(folder, monkeypatch)


def test_a_chat_template_that_fails(plain, monkeypatch):
    (plain / "chat_template.jinja").write_text("{{ raise_exception('no user turns') }}")
    assert f"{plain}: TemplateError: no user turns" in refused(plain, monkeypatch)


def test_missing_settings_of_the_tokenizer(folder, monkeypatch):
    """Its special tokens would have no role, or that of a default."""
    (folder / "tokenizer_config.json").unlink()
    assert f"{folder}/tokenizer_config.json does not exist: copy it" in refused(folder, monkeypatch)


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_larger_than_the_embedding(folder, monkeypatch, special):
    """The first such token in a prompt would end a run, and special ones did so in the first rollout."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_family(folder)[0].vocab_size
    tokenizer.add_tokens([AddedToken(f"<more-{i}>", special=special) for i in range(12)], special_tokens=special)
    tokenizer.save_pretrained(folder)
    message = refused(folder, monkeypatch)
    beyond = len(tokenizer) - rows
    first = tokenizer.convert_ids_to_tokens(rows)
    told = f"the embedding has {rows} rows and the tokenizer {beyond} tokens beyond them, first '{first}' ({rows})"
    assert told in message
    assert "resize_token_embeddings" in message
    with pytest.raises(ModelError, match="tokens beyond them"):
        open_family(folder)


def test_gemma_3_1b_has_the_image_token_of_the_larger_ones(checkpoint, tmp_path):
    """Its published tokenizer names <image_soft_token> behind the last row of the embedding."""
    folder = Path(shutil.copytree(checkpoint("gemma3-text"), tmp_path / "model"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<image_soft_token>", "<unused>"), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<unused-{i}>" for i in range(rows - len(tokenizer))])
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True, normalized=False)], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == rows
    tokenizer.save_pretrained(folder)
    family, model = load_family(folder)
    assert max(family.forbidden_ids) < rows
    prompt = family.encode("What is <image_soft_token>?")
    assert int(prompt.input_ids.max()) < rows
    generate(family, model.eval(), [RolloutRequest(prompt)], Sampling(3))


def test_a_tokenizer_without_an_end(plain, monkeypatch):
    edit(plain / "tokenizer_config.json", lambda fields: fields.pop("eos_token"))
    assert f"{plain}/tokenizer_config.json names no eos_token: copy it" in refused(plain, monkeypatch)


def test_a_missing_tokenizer(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    assert f"{folder}/tokenizer.json does not exist, nor another tokenizer file" in refused(folder, monkeypatch)


def test_a_missing_chat_template(folder, monkeypatch):
    assert chat_template_file(folder) is not None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        if (folder / name).exists():
            edit(folder / name, lambda fields: fields.pop("chat_template", None))
    message = refused(folder, monkeypatch)
    assert "has no chat template (chat_template.jinja, chat_template.json, " in message and "instruction" in message


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "processor_config.json"])
def test_chat_templates_in_other_files(checkpoint, tmp_path, place):
    """Older checkpoints hold it in the tokenizer's or the processor's settings."""
    folder = Path(shutil.copytree(checkpoint("smolvlm-v1"), tmp_path / "model"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if not (folder / place).exists():
        (folder / place).write_text("{}")
    edit(folder / place, lambda fields: fields.update(chat_template=template))
    assert chat_template_file(folder) == place
    if place != "tokenizer_config.json":  # a processor reads its own files first
        assert load_family(folder)[0].processor.chat_template == template


def test_a_cut_text_file(folder, monkeypatch):
    for file in sorted(folder.glob("*.json")):
        text = file.read_text()
        file.write_text(text[: len(text) // 2])
        assert f"{file}: not valid JSON (" in refused(folder, monkeypatch)
        file.write_text(text)


@pytest.mark.parametrize("folder", VISION, indirect=True)
def test_another_checkpoints_tokenizer(folder, monkeypatch):
    config = folder / "config.json"
    ours = json.loads(config.read_text())
    key = next(key for key in ("image_token_id", "image_token_index") if key in ours)
    edit(config, lambda fields: fields.update({key: 70}))
    message = refused(folder, monkeypatch)
    assert "config.json has image_token_id 70, the tokenizer has " in message and "from the same checkpoint" in message


def test_a_tokenizer_that_transformers_cannot_read(plain, monkeypatch):
    (plain / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unheard"}}')
    assert f"model.path: {plain} cannot be loaded: " in refused(plain, monkeypatch)


# --- weights ----------


@pytest.mark.parametrize("keep", [0, 5, 300, -1000])
def test_a_truncated_file(folder, monkeypatch, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    message = refused(folder, monkeypatch)
    assert message.startswith(f"{folder}/{WEIGHTS}: ") and message.endswith(
        ": copy it from the original checkpoint again"
    )
    if keep < 0:
        assert f"{len(data) - 1000} bytes where its header says {len(data)}, it is cut" in message


def test_a_truncated_shard(folder, monkeypatch):
    name = shard(folder)[1]
    (folder / name).write_bytes((folder / name).read_bytes()[:-4])
    assert f"{folder}/{name}: " in refused(folder, monkeypatch)


def corrupted(data: bytes, kind: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if kind == "length":
        return b"\xff" * 8 + data[8:]
    if kind == "header":
        return data[:8] + b"\x00" * length + data[8 + length :]
    if kind == "tail":
        return data + b"more"
    header = json.loads(data[8 : 8 + length])
    first = next(info for name, info in header.items() if name != "__metadata__")
    first["shape"] = [1, *first["shape"], 2]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize("kind", ["length", "header", "tail", "shape"])
def test_a_corrupt_file(plain, monkeypatch, kind):
    (plain / WEIGHTS).write_bytes(corrupted((plain / WEIGHTS).read_bytes(), kind))
    assert refused(plain, monkeypatch).startswith(f"{plain}/{WEIGHTS}: ")


def test_a_pointer_of_git_lfs(plain, monkeypatch):
    (plain / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n")
    assert "is a pointer of Git LFS, not the weights: run git lfs pull" in refused(plain, monkeypatch)


def test_a_missing_shard(folder, monkeypatch):
    names = shard(folder)
    (folder / names[1]).unlink()
    message = refused(folder, monkeypatch)
    assert f"{folder}/{names[1]} does not exist, but {INDEX} names it (1 of 2 files are missing)" in message


def test_shards_without_their_index(plain, monkeypatch):
    names = shard(plain)
    (plain / INDEX).unlink()
    message = refused(plain, monkeypatch)
    assert f"{plain}/{INDEX} does not exist, and nothing says what {names[0]} is part of" in message


def test_an_index_without_a_map(plain, monkeypatch):
    shard(plain)
    (plain / INDEX).write_text("{}")
    assert f"{plain}/{INDEX}: it has no weight_map" in refused(plain, monkeypatch)


def test_pickled_weights(folder, monkeypatch):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    message = refused(folder, monkeypatch)
    assert f"{folder}/pytorch_model.bin: pickled weights" in message and "convert them to safetensors" in message


def test_no_weights_at_all(folder, monkeypatch):
    (folder / WEIGHTS).unlink()
    assert f"{folder}/{WEIGHTS} does not exist, nor {INDEX}: the folder has no weights" in refused(folder, monkeypatch)


def test_an_adapter_alone(plain, monkeypatch):
    (plain / WEIGHTS).rename(plain / "adapter_model.safetensors")
    (plain / "adapter_config.json").write_text("{}")
    assert "holds an adapter without its model: merge it" in refused(plain, monkeypatch)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_beside_its_model(plain, monkeypatch, config):
    """transformers would load the adapter too, unmerged, and training would take it for its own."""
    (plain / "adapter_config.json").write_text("{}")
    if not config:
        (plain / "config.json").unlink()
    assert "holds a model and an adapter: move adapter_config.json" in refused(plain, monkeypatch)


@pytest.mark.parametrize("text", ["[]", '{"eos_token_id": "x", "max_new_tokens": "many"}', '{"temperature": 0.0}'])
def test_the_generation_config_is_not_read(plain, text):
    (plain / "generation_config.json").write_text(text)
    _, model = load_family(plain)
    assert model.generation_config.temperature is None


def test_missing_tensors(folder, monkeypatch):
    tensors = load_file(folder / WEIGHTS)
    gone = [name for name in tensors if ".1." in name]  # the second layer of each tower
    assert gone
    save_file({k: v for k, v in tensors.items() if k not in gone}, folder / WEIGHTS, metadata={"format": "pt"})
    message = refused(folder, monkeypatch)
    assert " has no weights for " in message and f"({len(gone)} parameters are missing)" in message


def test_sizes_that_do_not_fit(folder, monkeypatch):
    def widen(fields: dict[str, Any]) -> None:
        text = fields.get("text_config", fields)
        text["intermediate_size"] += 16

    edit(folder / "config.json", widen)
    message = refused(folder, monkeypatch)
    assert f"{folder}/config.json does not fit the weights: " in message
    assert " in the file and " in message and " parameters differ): copy both from the same checkpoint" in message


def test_nothing_is_printed(plain, monkeypatch, capfd):
    """transformers prints a table of its own otherwise."""
    edit(plain / "config.json", lambda fields: fields.update(intermediate_size=96))
    refused(plain, monkeypatch)
    printed = capfd.readouterr()
    assert printed.out == "" and "MISMATCH" not in printed.err and "%|" not in printed.err


def test_pictures_are_what_makes_a_processor_needed():
    assert VISION and all(IMAGE in FAMILIES[makers()[name][0]].modalities for name in VISION)
