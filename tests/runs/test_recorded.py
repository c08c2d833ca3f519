"""What a run folder records is what happened: settings, code and data of every start; resumes go on or are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.launching import ROOT, environment
from tests.helpers.runs import lines, write_config

pytestmark = pytest.mark.dist
ROWS = [{"id": f"r{i}", "question": f"what is {i}?", "answer": str(i), "hint": f"it is {i}"} for i in range(8)]


class Starts:
    """Runs on one rank in one process; `told` is what each said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "train.jsonl"
        self.write(ROWS)
        self.config = write_config(
            folder,
            method="sft",
            model__family="causal_lm",
            data={"train": {"source": "jsonl", "path": str(self.data)}},
            train__max_steps=2,
            run__samples=0,
            run__export=False,
        )

    def write(self, rows: list[dict], name: str = "train.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def go(self, *, no_space: dict[str, list[str]] | None = None, **jobs: list[str]) -> None:
        listed = [
            {"config": str(self.config), "overrides": [f"run.dir={self.folder / name}", *overrides],
             "log": str(self.folder / f"{name}.log"), "full": (no_space or {}).get(name, [])}
            for name, overrides in jobs.items()
        ]  # fmt: skip
        (self.folder / "jobs.json").write_text(json.dumps(listed))
        command = [sys.executable, "-m", "tests.programs.recorded", str(self.folder / "jobs.json")]
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def told(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def copy(self, name: str) -> Path:
        shutil.copytree(self.folder / "base", self.folder / name)
        return self.folder / name


MORE = "train.max_steps=3"
OFTEN = ["train.max_steps=4", "run.save_every=1", "run.keep_last=1"]


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> Starts:
    starts = Starts(tmp_path_factory.mktemp("recorded"))
    starts.go(base=[])
    (starts.folder / "branch").mkdir()
    shutil.copytree(starts.folder / "base" / "checkpoints", starts.folder / "branch" / "checkpoints")
    for name in ("plain", "optim", "dtype", "replaced", "allowed", "torn"):
        starts.copy(name)
    torn = starts.folder / "torn"
    (torn / "checkpoints" / "best.json").write_bytes(b"")
    with (torn / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 64 + b'\n{"step": 2, "lo')
    (torn / "config.yaml").write_bytes(b"\0" * 32)
    (torn / "starts.jsonl").write_bytes(b"\0" * 32)
    other = starts.write([{**row, "answer": "7"} for row in ROWS], "other.jsonl")
    starts.go(
        plain=[MORE],
        branch=[MORE, "optim.lr=0.002"],
        optim=[MORE, "optim.weight_decay=0.3", "optim.betas=[0.5,0.6]", "optim.eps=1e-3"],
        dtype=[MORE, "model.dtype=bf16"],
        replaced=[MORE, f"data.train.path={other}"],
        allowed=[MORE, f"data.train.path={other}", "run.allow_changed_data=true"],
        torn=[MORE],
        full_for_a_while=OFTEN,
        full_at_once=OFTEN,
        full_at_the_end=OFTEN,
        no_export=[*OFTEN, "run.export=true"],
        no_space={
            "full_for_a_while": ["step-00000002", "step-00000003"],
            "full_at_once": ["step-00000001"],
            "full_at_the_end": ["step-00000004"],
            "no_export": [".partial-export"],
        },
    )
    return starts


def history(run: Path) -> dict[str, list]:
    found = [json.loads(line) for line in (run / "config_history.jsonl").read_text().splitlines()]
    assert all(line["step"] == 2 and line["time"] for line in found)
    return {line["key"]: [line["old"], line["new"]] for line in found}


def test_every_start_says_what_it_was(starts):
    run = starts.folder / "plain"
    first, second = (json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2)
    for start in (first, second):
        assert start["host"] and start["time"] and start["ranks"] == 1 and "recorded" in start["command"]
        assert start["versions"]["torch"] and start["versions"]["device"]
        assert start["data"]["data.train"]["records"] == 8
        code = start["code"]
        assert code is None or (len(code["commit"]) == 40 and code["dirty"] in (True, False))
    assert first["data"] == second["data"]


def test_a_longer_run_writes_down_what_changed(starts):
    assert history(starts.folder / "plain") == {"train.max_steps": [2, 3]}
    assert yaml.safe_load((starts.folder / "plain" / "config.yaml").read_text())["train"]["max_steps"] == 3
    assert not (starts.folder / "base" / "config_history.jsonl").exists()
    assert "settings changed since this run started: train.max_steps" in starts.told("plain")


def test_new_settings_of_the_optimizer_are_used(starts):
    assert history(starts.folder / "optim") == {
        "optim.betas": [[0.9, 0.95], [0.5, 0.6]],
        "optim.eps": [1e-5, 1e-3],
        "optim.weight_decay": [0.1, 0.3],
        "train.max_steps": [2, 3],
    }
    used = json.loads(starts.told("optim").split("optimizer ", 1)[1].splitlines()[0])
    assert all(group["betas"] == [0.5, 0.6] and group["eps"] == 1e-3 for group in used)
    assert {group["weight_decay"] for group in used} == {0.0, 0.3}
    a, b = (lines(starts.folder / name)[-1] for name in ("plain", "optim"))
    assert a["step"] == b["step"] == 3 and (starts.folder / "optim" / "DONE").exists()


def test_copied_checkpoints_alone_begin_a_branch(starts):
    branch = starts.folder / "branch"
    assert "resuming at step 2" in starts.told("branch") and (branch / "DONE").exists()
    assert [line["step"] for line in lines(branch)] == [3]
    assert set(history(branch)) == {"optim.lr", "train.max_steps"}  # off the copied checkpoint


def test_another_precision_is_refused(starts):
    told = starts.told("dtype").strip().splitlines()[-1]
    assert told.startswith("error: CheckpointError") and "float32" in told and "model.dtype" in told
    assert [line["step"] for line in lines(starts.folder / "dtype")] == [1, 2]
    assert (starts.folder / "dtype" / "config.yaml").read_text() == (starts.folder / "base/config.yaml").read_text()


def test_other_records_are_refused_unless_allowed(starts):
    told = starts.told("replaced").strip().splitlines()[-1]
    assert "error: ConfigError" in told and "data.train: other texts" in told and "run.allow_changed_data=true" in told
    assert (starts.folder / "replaced" / "config.yaml").read_text() == (starts.folder / "base/config.yaml").read_text()
    allowed = history(starts.folder / "allowed")
    assert allowed["data.train (records)"][0]["texts"] != allowed["data.train (records)"][1]["texts"]
    assert (starts.folder / "allowed" / "DONE").exists()


def test_the_tokenizer_of_a_run_from_scratch_is_kept(starts):
    """Trained again from the changed answers it would be another one."""
    before = (starts.folder / "base" / "checkpoints" / "tokenizer.json").read_text()
    assert (starts.folder / "allowed" / "checkpoints" / "tokenizer.json").read_text() == before


def test_files_that_a_power_loss_tore_do_not_stop_a_resume(starts):
    torn = starts.folder / "torn"
    assert "resuming at step 2" in starts.told("torn") and "error" not in starts.told("torn")
    assert [line["step"] for line in lines(torn)] == [1, 2, 3] and (torn / "DONE").exists()


def test_a_full_disk_costs_checkpoints_but_not_the_run(starts):
    run, told = starts.folder / "full_for_a_while", starts.told("full_for_a_while")
    failed = [line for line in told.splitlines() if "was not written" in line]
    assert [line.split()[1] for line in failed] == ["step-00000002", "step-00000003"], told
    for line in failed:
        assert "No space left on device" in line and "bytes free, needed are " in line
        assert f"the disk of {run / 'checkpoints'} (/" in line and "that of step 1 to go back to" in line
    assert (run / "DONE").exists() and sorted(p.name for p in (run / "checkpoints").glob("*step*")) == ["step-00000004"]
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_a_run_with_nothing_to_go_back_to_ends(starts):
    run, told = starts.folder / "full_at_once", starts.told("full_at_once").splitlines()[-1]
    assert told.startswith("error: CheckpointError: step-00000001 was not written (No space left on device)")
    assert "there is no earlier one: free space" in told
    assert not (run / "DONE").exists() and not list((run / "checkpoints").glob("*step*"))


def test_a_run_is_not_done_without_its_last_checkpoint_and_export(starts):
    told = starts.told("full_at_the_end").splitlines()[-1]
    assert "error: CheckpointError: step-00000004 was not written" in told and "goes on at step 3" in told
    assert not (starts.folder / "full_at_the_end" / "DONE").exists()
    run, told = starts.folder / "no_export", starts.told("no_export").splitlines()[-1]
    assert told.startswith(f"error: CheckpointError: {run / 'export'} was not written (No space left on device)")
    assert not (run / "DONE").exists() and not (run / "export").exists() and not (run / ".partial-export").exists()
