"""What becomes of the folder that a new export replaces, and of links and permissions in the model's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dyme.checkpoint.exported import clear, level_modes, note
from dyme.families.processors import copy_processor, strays


def exported(folder: Path) -> Path:
    (folder / "export" / "deep").mkdir(parents=True)
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    (folder / "export" / "deep" / "more").write_bytes(b"more")
    return folder / "export"


def test_what_was_exported_is_replaced(tmp_path):
    assert clear(tmp_path / "export") is None
    folder = exported(tmp_path)
    note(folder)
    assert clear(folder) is None and not folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "mine.txt").touch(),
        lambda folder: (folder / "deep" / "model.safetensors").touch(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"changed"),
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: (folder / "empty").mkdir(),
        lambda folder: (folder.with_name(".export.json")).unlink(),
        lambda folder: (folder.with_name(".export.json")).write_text("{"),
    ],
)
def test_what_somebody_changed_is_kept(tmp_path, change):
    folder = exported(tmp_path)
    note(folder)
    change(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    (tmp_path / "export-kept-1").mkdir()
    assert clear(folder) == tmp_path / "export-kept-2"
    assert sorted(p.name for p in (tmp_path / "export-kept-2").rglob("*")) == before


def test_weights_get_the_permissions_of_new_files(tmp_path):
    folder = exported(tmp_path)
    (folder / "model.safetensors").chmod(0o600)
    (folder / "tokenizer.json").touch(0o600)
    level_modes(folder)
    usual = (folder / "deep" / "more").stat().st_mode
    assert (folder / "model.safetensors").stat().st_mode == usual
    assert (folder / "tokenizer.json").stat().st_mode & 0o777 == 0o600
    assert not (folder / ".mode").exists()


def test_links_out_of_the_model_folder_are_not_copied(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    (tmp_path / "secret").write_text("key")
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").symlink_to("tokenizer.json")  # within the folder
    assert strays(model) == [] and copy_processor(model, out) == 2
    (model / "vocab.json").symlink_to(tmp_path / "secret")
    (model / "tokenizer.model").symlink_to("../secret")
    assert [p.name for p in strays(model)] == ["tokenizer.model", "vocab.json"]
    with pytest.raises(ValueError, match=r"tokenizer\.model is a link out of its folder"):
        copy_processor(model, out)
    assert sorted(p.name for p in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert not (out / "tokenizer_config.json").is_symlink()


def test_a_snapshot_of_the_hub_is_copied(tmp_path):
    hub = tmp_path / "models--a--b"
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / "abc").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    (tmp_path / "out").mkdir()
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    assert strays(snapshot) == [] and strays(linked) == []
    assert copy_processor(linked, tmp_path / "out") == 1
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    (hub / "other").write_text("x")
    (snapshot / "vocab.json").symlink_to("../../other")
    assert [p.name for p in strays(snapshot)] == ["vocab.json"]


def test_permissions_of_copied_files_are_kept(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    for name, mode in (("tokenizer.json", 0o600), ("vocab.json", 0o444), ("merges.txt", 0o777)):
        (model / name).touch()
        (model / name).chmod(mode)
    copy_processor(model, out)
    modes = {p.name: p.stat().st_mode & 0o777 for p in out.iterdir()}
    assert modes == {"tokenizer.json": 0o600, "vocab.json": 0o644, "merges.txt": 0o644}
