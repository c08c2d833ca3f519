"""Gold answers of the real sets, written as models write replies: always right, and always in a valid format."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dyme.config import load_config
from dyme.data import Record, read_records
from dyme.rewards.compose import check
from dyme.settings.rewards import RewardConfig
from tests.helpers.launching import ROOT

SETS = ("easy_vqa", "gsm8k", "nlvr", "puzzlevqa", "vqa_rad")
MOST = 80
"""Different answers of a split that are tried."""

FLAGS = (
    "Answer:",
    "ANSWER:",
    "Answer：",
    "Answer :",
    "**Answer:**",
    "**Answer** :",
    "### Answer:",
    "\u200bAns\u200bwer:\ufeff",
)
WAYS = (
    "{}",
    "{}.",
    "\n\n{}\n\n",
    "**{}**",
    "`{}`.",
    '"{}"',
    "“{}”.",
    "${}$",
    r"\({}\)",
    "\\[\n{}\n\\]",
    r"\boxed{{{}}}",
    r"$\boxed{{\text{{{}}}}}$.",
    r"It is \boxed{{{}}}.",
    "The answer is {}.",
    "The final answer is: **{}**",
    "{}. The picture shows it.",
    "**{}**. The picture shows it.\n",
    "{}.\n\nThat is what the picture shows.",
    "\u200f{}\u200b",
)


def different(records, seed: int) -> list[Record]:
    """Records of different answers or choices, at most `MOST`."""
    found = list({(record.answers, record.choices): record for record in records}.values())
    return random.Random(seed).sample(found, min(MOST, len(found)))


@pytest.mark.parametrize("style", ["think", "direct"])
@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("name", SETS)
def test_a_gold_answer_is_right_however_it_is_written(name: str, part: str, style: str, data_root: Path):
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    for at, record in enumerate(different(read_records(getattr(cfg.data, part)), seed=1)):
        before = f"I see it.\n{FLAGS[at % len(FLAGS)]} " if style == "think" else ("", "Answer: ")[at % 2]
        texts = [before + way.format(record.answer) for way in WAYS]
        for reward in (cfg.reward, RewardConfig()):
            checked = check(
                texts,
                [record] * len(texts),
                truncated=[False] * len(texts),
                config=reward,
                flag="Answer:",
                style="think" if style == "think" else "direct",
            )
            wrong = np.flatnonzero((checked.parts[:, [0, 2]] != 1.0).any(axis=1))
            assert not wrong.size, (reward.verifier, record.answers, [texts[i] for i in wrong])
