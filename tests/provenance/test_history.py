"""Changed settings, finished runs, the code's version, and fingerprints of records."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dyme.config import RunConfig, dump_config, load_config
from dyme.data import LazyImage, Record
from dyme.provenance import origin
from dyme.provenance.contents import changed_data, describe, fingerprint, fingerprints
from dyme.provenance.history import DONE, Change, changes, finished, record, written
from dyme.settings.errors import ConfigError
from tests.helpers.runs import write_config


def loaded(folder: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(folder), [f"run.dir={folder / 'run'}", *overrides])


def test_a_setting_that_an_earlier_version_did_not_have_has_not_changed(tmp_path):
    cfg = loaded(tmp_path)
    text = dump_config(cfg)
    assert changes(text, cfg) == [] and changes(text.replace("  allow_changed_data: false\n", ""), cfg) == []
    assert changes(text.replace("  keep_last: 2\n", "  keep_last: 3\n"), cfg) == [Change("run.keep_last", 3, 2)]
    assert Change("run.gone", 1, None) in changes(text.replace("  keep_last: 2\n", "  keep_last: 2\n  gone: 1\n"), cfg)
    assert changes(dump_config(loaded(tmp_path, f"run.dir={tmp_path / 'moved'}")), cfg) == []


def test_a_finished_run_with_other_settings_is_refused_unless_it_gets_longer(tmp_path):
    cfg, folder = loaded(tmp_path, "run.max_minutes=5"), tmp_path / "run"
    folder.mkdir()
    assert not finished(folder, cfg)
    record(folder, cfg, 0, [], {})
    assert not finished(folder, cfg)
    (folder / DONE).touch()
    assert finished(folder, cfg)
    for other in ("optim.lr=0.5", "run.max_minutes=2", "train.max_steps=2", "run.report=true"):
        with pytest.raises(
            ConfigError, match=rf"finished run with other settings \({other.split('=')[0]}\).*run\.dir="
        ):
            finished(folder, loaded(tmp_path, "run.max_minutes=5", other))
    for longer in ("run.max_minutes=9", "run.max_minutes=null", "train.max_steps=9"):
        assert not finished(folder, loaded(tmp_path, "run.max_minutes=5", longer, "optim.lr=0.5"))
    (folder / "config.yaml").write_bytes(b"\0\0")
    with pytest.raises(ConfigError, match=r"without its config\.yaml"):
        finished(folder, cfg)


def test_the_files_of_a_start(tmp_path):
    cfg = loaded(tmp_path)
    (tmp_path / "starts.jsonl").write_bytes(b"\0\0\0")
    (tmp_path / "mine.yaml").write_text("a: 1")
    record(tmp_path, cfg, 4, [Change("optim.lr", 1, 2)], {"host": "h"})
    assert json.loads((tmp_path / "config_history.jsonl").read_text())["old"] == 1
    assert json.loads((tmp_path / "starts.jsonl").read_text().splitlines()[-1])["host"] == "h"
    assert written(tmp_path) == dump_config(cfg)
    record(tmp_path, cfg, 0, [], {})  # begun anew
    assert not (tmp_path / "config_history.jsonl").exists()
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_version_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    (tmp_path / "dyme").mkdir()
    (tmp_path / "dyme" / "__init__.py").touch()
    assert origin.code_version(tmp_path) is None

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(tmp_path), *arguments]
        subprocess.run(command, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})

    git("init")
    assert origin.code_version(tmp_path) is None  # installed in somebody else's repository
    git("add", "dyme")
    git("commit", "-m", "m")
    found = origin.code_version(tmp_path)
    assert found and len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "dyme" / "__init__.py").write_text("x = 1")
    changed = origin.code_version(tmp_path)
    assert changed and changed["dirty"] is True
    monkeypatch.setenv("PATH", "/nowhere")
    assert origin.code_version(tmp_path) is None


def test_records_are_told_by_what_is_in_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"picture " + name.encode())
    held = [
        Record("1", "q", ("a", "b"), hint="h", images=(LazyImage(path=tmp_path / "a"),)),
        Record("2", "q", ("x",), ("x", "y"), facts="f", kind="k"),
    ]
    before = fingerprint(held)
    (tmp_path / "moved").mkdir()
    shutil.copyfile(tmp_path / "a", tmp_path / "moved" / "a")
    moved = replace(held[0], images=(LazyImage(path=tmp_path / "moved" / "a"),))
    assert fingerprint([moved, held[1]]) == before
    for change in (
        {"id": "3"}, {"question": "r"}, {"answers": ("a",)}, {"hint": None}, {"facts": "g"}, {"kind": "k"},
        {"choices": ("a", "b")}, {"images": ()}, {"images": (LazyImage(path=tmp_path / "b"),)},
        {"images": (LazyImage(path=tmp_path / "none"),)}, {"question": "\ud83d"},
    ):  # fmt: skip
        assert fingerprint([replace(held[0], **change), held[1]]) != before, change
    assert fingerprint(held[::-1]) != before


def test_what_changed_in_the_data_is_told(tmp_path):
    a, b = [Record("1", "q", ("a",))], [Record("1", "q", ("a",)), Record("2", "q", ("a",))]
    changed = changed_data(fingerprints(a, a), fingerprints(b, [Record("1", "r", ("a",))]))
    assert describe(changed) == "data.train: 1 records, now 2, other texts; data.eval: other texts"
    assert changed_data({}, fingerprints(a, a)) == [] == changed_data(fingerprints(a, None), fingerprints(a, a))
