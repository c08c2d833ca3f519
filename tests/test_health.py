"""A run that cannot succeed stops early; one that loses some rows goes on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

from dyme.health import Health
from dyme.rewards import compose
from dyme.rewards.calls import Failures
from dyme.settings.rewards import RewardConfig
from tests.helpers.launching import launch
from tests.helpers.runs import lines, write_config


def reward(**entry: object) -> RewardConfig:
    return RewardConfig.model_validate({"user": [{"function": "own.py:mine", **entry}]})


def columns(failed: str = "...", accuracy: str = "000", formats: str = "111", length: int = 4) -> dict:
    """A step of rollouts: 'x' is a failure."""
    return {
        "length": torch.full((len(failed),), float(length)),
        "format": torch.tensor([float(f) for f in formats]),
        "accuracy": torch.tensor([math.nan if a == "x" else float(a) for a in accuracy]),
        "user_failed/mine": torch.tensor([float(f == "x") for f in failed]),
    }


@pytest.mark.parametrize(
    ("steps", "entry", "stops"),
    [
        ([{"failed": "xxx"}, {"failed": "xxx"}], {}, "reward.user own.py:mine failed on every completion of 2 steps"),
        ([{"failed": "xxx"}], {}, ""),
        ([{"failed": "xxx"}, {"failed": "xx."}, {"failed": "xxx"}], {}, ""),
        ([{"failed": "xx."}] * 9, {}, ""),
        ([{"failed": "xxx", "length": 0}] * 9, {}, ""),  # no completions at all
        ([{"failed": "xxx"}] * 9, {"weight": 0}, ""),  # measured only
        ([{"failed": "xxx"}] * 2, {"weight": {"start": 0, "end": 1, "steps": 50}}, "own.py:mine"),
        ([{"accuracy": "xxx"}] * 2, {}, "reward.verifier auto failed on every completion of 2 steps"),
        ([{"accuracy": "x0x", "formats": "101"}] * 2, {}, "reward.verifier auto"),
        ([{"accuracy": "x01"}] * 9, {}, ""),
        ([{"accuracy": "000", "formats": "000"}] * 9, {}, ""),
    ],
)
def test_a_reward_that_fails_on_every_row_of_two_steps(steps, entry, stops):
    cfg, health, failures = reward(**entry), Health(), Failures()
    for step, given in enumerate(steps):
        assert not health.hopeless(cfg, failures)
        health.scored(columns(**given), cfg, step)
    why = health.hopeless(cfg, failures)
    assert why.startswith("reward.") and stops in why if stops else not why


def test_the_newest_failure_of_a_reward_is_known_to_all_ranks():
    ranks = [Failures(), Failures()]
    ranks[1].note({"mine: NameError": 2}, {"mine: NameError": "NameError: no x (line 3)"})
    parts = [json.loads(json.dumps(each._noted)) for each in ranks]
    for each in ranks:
        each.share(lambda _: parts, lambda _: None)
        assert each.newest("mine") == "NameError: no x (line 3)" and each.newest("verifier") == ""


def test_a_verifier_that_fails_says_where(monkeypatch):
    def breaks(answer: str, record: object) -> float:
        return 1 / 0

    monkeypatch.setattr(compose, "get_verifier", lambda *_, **__: breaks)
    record = type("R", (), {"answers": ("4",), "answer": "4"})()
    monkeypatch.setattr(compose, "gold_as_written", lambda *_: None)
    checked = compose.check(["so\nAnswer: 4"], [record], truncated=[False], config=reward(), flag="Answer:")  # type: ignore[list-item]
    told = checked.examples["ZeroDivisionError"]
    assert "ZeroDivisionError: division by zero" in told and "test_health.py" in told and "in breaks" in told


@pytest.mark.dist
def test_a_typo_in_a_reward_function_ends_the_run_early(tmp_path):
    (tmp_path / "own.py").write_text("def mine(completions, **_):\n    return [lenght(c) for c in completions]\n")
    config = write_config(tmp_path, reward__user=[{"function": f"{tmp_path}/own.py:mine"}], train__max_steps=30)
    done = launch("--config", config, f"run.dir={tmp_path / 'run'}", check=False)
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"{tmp_path}/own.py:mine failed on every completion of 2 steps in a row: NameError: name 'lenght'" in told
    assert "(line 2)" in told and "goes on at step 2" in told
    assert not (tmp_path / "run" / "DONE").exists() and not (tmp_path / "run" / "run.lock").exists()
    assert len([line for line in lines(tmp_path / "run") if not line.get("eval")]) == 2


ALL, NONE = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)


def test_rows_lost_in_mid_run_count_over_a_window():
    one = ALL.clone()
    one[0] = False

    def lost(*steps: torch.Tensor, fraction: float = 0.01) -> str:
        health = Health()
        for readable in steps:
            health.ended(readable, {}, trained=bool(readable.any()), applied=bool(readable.any()))
        return health.bad_rows(fraction, 4)

    assert not lost(*[ALL] * 50) and not lost(one) and not lost(*([one] + [ALL] * 19) * 20)
    assert "4 of 8 rows of the last 2 steps" in lost(ALL, NONE) and "data.max_bad_fraction=0.01" in lost(ALL, NONE)
    assert lost(one, fraction=0.0) and not lost(*[NONE] * 50, fraction=1.0)
    assert not lost(*[one] * 50, fraction=0.25) and lost(*[NONE] * 50, fraction=0.25)
    assert not lost(*[NONE] * 5, *[ALL] * 20), "only the window counts"


def test_a_run_most_of_whose_steps_had_no_update_is_not_done():
    def why(*steps: tuple[int, torch.Tensor, dict, bool, bool]) -> str:
        first, second = Health(), Health()
        for count, *step in steps:
            for _ in range(count):
                first.ended(*step)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # kept in checkpoints
        assert second.idle() == first.idle()
        return first.idle()

    good, unread = (ALL, {}, True, True), (NONE, {}, False, False)
    unscored = (ALL, {"scored": torch.zeros(4)}, False, False)
    alike = (ALL, {"scored": torch.ones(4), "correct": torch.tensor([1.0, 1.0, 0.0, 0.0])}, False, False)
    mastered = (ALL, {"scored": torch.tensor([1.0, 0.0]), "correct": torch.tensor([1.0, torch.nan])}, False, False)
    assert not why() and not why((2, *good)) and not why((2, *good), (2, *unread))
    told = why((2, *good), (25, *unread), (2, *unscored), (1, ALL, {}, True, False))
    assert told.startswith("28 of 30 steps had no update (25: no prompt could be read; 2: no completion was scored; 1:")
    assert not why((2, *good), (30, *mastered)), "a run that has learned all there is to learn is done"
    assert not why((9, *alike)) and "10 of 10" in why((10, *alike))


@pytest.mark.dist
def test_pictures_deleted_in_mid_run_end_it(tmp_path):
    """The rank that loses them is not the only one that knows; the same command goes on once they are back."""
    rows = []
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 200, 90)).save(tmp_path / f"{i}.png")
        rows.append({"id": f"r{i}", "question": f"what is {i}?", "answer": str(i), "hint": "it", "image": f"{i}.png"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n\n\ndef mine(completions, step, **_):\n"
        "    for file in Path(__file__).parent.glob('*.png'):\n"
        "        file.rename(file.with_suffix('.gone'))\n"
        "    return [float(i) for i in range(len(completions))]\n"
    )
    config = write_config(
        tmp_path,
        data={"train": {"source": "jsonl", "path": str(tmp_path / "train.jsonl")}},
        reward__user=[{"function": f"{tmp_path}/own.py:mine"}],
        train__max_steps=4,
    )
    done = launch("--config", config, f"run.dir={tmp_path / 'run'}", check=False)
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and "Traceback" not in done.stderr and not (tmp_path / "run" / "DONE").exists()
    assert "could not be read, more than data.max_bad_fraction=0.01 allows" in told and "goes on at step " in told
    for file in tmp_path.glob("*.gone"):
        file.rename(file.with_suffix(".png"))
    done = launch("--config", config, f"run.dir={tmp_path / 'run'}", "data.max_bad_fraction=1.0", check=False)
    assert "resuming at step " in done.stderr and (tmp_path / "run" / "metrics.jsonl").read_text().count('"step": 4')
