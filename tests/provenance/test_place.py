"""Which folders a run takes, and that a refusal leaves everything as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from dyme.provenance.place import STARTS, check_place, check_writable, free_bytes
from dyme.settings.errors import ConfigError


def refused(folder: Path, *also: Path) -> str:
    with pytest.raises(ConfigError) as error:
        check_place(folder, *also)
    told = str(error.value)
    assert told.startswith("run.dir: ") and "\n" not in told
    return told


def test_new_and_empty_folders_are_taken(tmp_path):
    check_place(tmp_path)
    check_place(tmp_path / "a" / "b")
    for name in (".gitkeep", "lost+found", ".nfs0001", "watchdog"):
        (tmp_path / name).mkdir()
    check_place(tmp_path)


def test_root_home_and_the_folder_above_are_refused(tmp_path, monkeypatch):
    assert "root" in refused(Path("/")) and "root" in refused(Path("/tmp/.."))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "home" in refused(tmp_path)  # though it is empty
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    refused(Path(".."))
    monkeypatch.setenv("HOME", "/nowhere")
    assert "work" in refused(Path(".."))


@pytest.mark.parametrize(
    "entry", ["export/model.safetensors", "checkpoints/best.pt", "notes.txt", "config.yaml", "run.lock", ".git/HEAD"]
)
def test_a_folder_that_holds_something_else_is_refused_and_named(tmp_path, entry):
    (tmp_path / entry).parent.mkdir(exist_ok=True)
    (tmp_path / entry).write_text(yaml.safe_dump({"model": {}, "data": {}, "run": {}}))
    assert Path(entry).parts[0] in refused(tmp_path)
    assert (tmp_path / entry).exists()


def test_a_folder_of_a_run_is_taken_with_what_lies_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / STARTS).write_text("{}\n")
    check_place(tmp_path)


def test_a_folder_of_an_earlier_version_and_copied_checkpoints_are_taken(tmp_path):
    old, copied = tmp_path / "old", tmp_path / "copied"
    old.mkdir()
    (old / "config.yaml").write_text(yaml.safe_dump({"model": {}, "data": {}, "run": {}}))
    (old / "metrics.jsonl").touch()
    check_place(old)
    (copied / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert "checkpoints" in refused(copied)
    (copied / "checkpoints" / "step-00000003" / "manifest.json").write_text('{"files": {}}')
    check_place(copied)


def test_files_and_what_lies_below_them_are_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in refused(tmp_path / "file")
    assert "below" in refused(tmp_path / "file" / "run") and "below" in refused(tmp_path / "file" / "a" / "run")
    (tmp_path / "circle").symlink_to("circle")
    refused(tmp_path / "circle")
    refused(tmp_path / ("x" * 300))


def test_links_that_would_be_written_through_are_refused(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (run / "export").symlink_to(elsewhere)
    assert "export must be a folder of its own" in refused(run)
    (run / "export").unlink()
    (run / "checkpoints").symlink_to(elsewhere)
    check_place(run)  # prepared on another disk
    (run / "checkpoints").unlink()
    (run / "checkpoints").symlink_to(tmp_path / "gone")
    assert "link to nothing" in refused(run)
    (run / "checkpoints").unlink()
    (run / STARTS).touch()
    (tmp_path / "mine.yaml").write_text("a: 1")
    (run / "config.yaml").symlink_to(tmp_path / "mine.yaml")
    assert "config.yaml is a link" in refused(run)


def test_a_model_in_the_export_that_is_replaced_is_refused(tmp_path):
    (tmp_path / STARTS).touch()
    (tmp_path / "export").mkdir()
    assert "model.path" in refused(tmp_path, tmp_path / "export")
    check_place(tmp_path, tmp_path / "exported")


def test_whether_a_folder_can_be_written_is_found_without_a_trace(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and not any((tmp_path / "a" / "b").iterdir())
    assert free_bytes(tmp_path / "c" / "d") > 0

    def denied(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", denied)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"run.dir: .*cannot be written \(Permission denied\)"):
        check_writable(tmp_path / "c" / "d")
    assert not (tmp_path / "c").exists()
    assert os.listdir(tmp_path) == ["a"]
