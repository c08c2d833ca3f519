"""Rules with a state, an entropy or parts in a few steps: the same on 1 and 2 ranks, and resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dyme.opening import check_modalities
from dyme.settings.errors import ConfigError
from dyme.settings.selector import SelectorConfig
from tests.helpers.runs import lines, same, same_weights, write_config

pytestmark = pytest.mark.dist

CHANGES = {
    "entropy": {"selector": {"name": "entropy_weighted"}, "reward": {"length": 0.5}},
    "buffered": {"selector": {"name": "buffered", "buffer_size": 4}, "train__max_steps": 4, "run__modes": True},
    "modulated": {"method": "sft", "optim__modulation": 0.3},
}
LIGHT = {"data__eval": None, "run__samples": 0, "optim__schedule": "constant"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """The folder of all runs by the number of ranks."""
    from tests.helpers.launching import run_on_ranks

    made = {}
    for ranks in (1, 2):
        folder = made[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        jobs = []
        for name, changes in CHANGES.items():
            own = folder / f"of_{name}"
            own.mkdir()
            config = str(write_config(own, **changes, **LIGHT))
            jobs.append({"config": config, "overrides": [f"run.dir={folder / name}"]})
            if name == "buffered" and ranks == 2:
                parted = [f"run.dir={folder / 'parted'}"]
                jobs += [{"config": config, "overrides": [*parted, f"train.max_steps={n}"]} for n in (2, 4)]
                selector = f"selector={{name: replay, path: {folder / name / 'modes.jsonl'}}}"
                jobs.append({"config": config, "overrides": [f"run.dir={folder / 'replayed'}", selector]})
            if name == "modulated" and ranks == 2:
                stage2 = [f"run.dir={folder / 'stage2'}", "deepspeed=ds_configs/zero2.json"]
                jobs.append({"config": config, "overrides": stage2})
        (folder / "jobs.json").write_text(json.dumps(jobs))
        said = run_on_ranks(ranks, "configs", folder / "jobs.json")
        assert all(Path(job["overrides"][0].removeprefix("run.dir="), "DONE").exists() for job in jobs), said
    return made


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_on_two_ranks(runs, name):
    one, two = (runs[ranks] / name for ranks in (1, 2))
    same(lines(one), lines(two), rel=2e-4)
    same_weights(one, two, atol=2e-5)


def test_entropy_weighs_both_parts(runs):
    """A random model is nearly uniform over its vocabulary, so its entropy is near ln V."""
    steps = lines(runs[1] / "entropy")
    assert [line["mode/joint_ratio"] for line in steps] == [1, 1, 1]
    assert all(4.5 < line["rollout/entropy"] < 6 for line in steps)
    assert all(line["reward/length_mean"] == 0 for line in steps)  # nobody is right


def test_records_wait_and_are_memorized(runs):
    """Three records a step, nobody right. Four wait after the second step: memorized in the third and in the fourth,
    beside three groups that are skipped."""
    steps = lines(runs[1] / "buffered")
    assert [line["mode/memorize_ratio"] for line in steps] == pytest.approx([0, 0, 4 / 7, 4 / 7])
    assert [line.get("effective_rows", 0) for line in steps] == [0, 0, 4, 4]
    assert steps[2]["memorize/repeat_count"] == 0
    # each of the four weighs 1/3, as in the step of three groups that it comes from; all tokens cost about ln V
    assert steps[2]["loss"] == pytest.approx(4 / 3 * steps[2]["memorize/nll"], rel=0.05)


def test_what_waits_is_resumed_to_the_bit(runs):
    folder = runs[2]
    state = json.loads((folder / "parted" / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert len(state["selector"]["waiting"]) == 6
    same(lines(folder / "buffered"), lines(folder / "parted"))
    same_weights(folder / "buffered", folder / "parted")


def test_modes_are_recorded_and_replayed_to_the_bit(runs):
    """The records that waited come with them; the resumed run wrote the same modes as the whole one."""
    whole, replayed = runs[2] / "buffered", runs[2] / "replayed"
    assert (whole / "modes.jsonl").read_text() == (runs[2] / "parted" / "modes.jsonl").read_text()
    third = json.loads((whole / "modes.jsonl").read_text().splitlines()[2])
    assert third["mode"] == ["SKIP"] * 3 + ["MEMORIZE"] * 4 and third["extra"] == 4
    same(lines(whole), lines(replayed))
    same_weights(whole, replayed)


def test_entropy_needs_log_probabilities():
    cfg = SimpleNamespace(
        method="dyme", selector=SelectorConfig(name="entropy_weighted"), rollout=SimpleNamespace(engine="hf")
    )
    family = SimpleNamespace(name="x", packs_trees=True, modalities=("image",))
    with pytest.raises(ConfigError, match=r"selector\.name=entropy_weighted needs log-probabilities"):
        check_modalities(cfg, family, [])
    cfg.rollout.engine = "auto"
    check_modalities(cfg, family, [])


def test_modulation_slows_one_part(runs):
    for line in lines(runs[1] / "modulated"):
        factors = sorted([line["optim/vision_factor"], line["optim/language_factor"]])
        assert 0 <= factors[0] < 1 and factors[1] == 1


def test_modulation_is_the_same_under_zero2(runs):
    same(lines(runs[2] / "modulated"), lines(runs[2] / "stage2"), rel=2e-4)
    same_weights(runs[2] / "modulated", runs[2] / "stage2", atol=2e-5)
