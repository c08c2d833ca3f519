"""The warning for replies that never come to an answer."""

from __future__ import annotations

import math

import pytest

from dyme.config import RunConfig
from dyme.metrics.cut_replies import CutReplies, warning
from dyme.settings.prompt import PromptConfig

ASKS, SILENT = PromptConfig(), PromptConfig(template="{question}")


def config(**train: int) -> RunConfig:
    tree = {"model": {"path": "m"}, "data": {"train": {"source": "charts", "count": 1}}, "train": train}
    return RunConfig.model_validate(tree | {"prompt": {"template": "{question}"}, "rollout": {"max_new_tokens": 9}})


@pytest.mark.parametrize(
    ("rate", "cut"), [(0.01, 1.0), (0.0, 0.5), (None, None), (math.nan, math.nan), (0.0, math.nan), (0.0, None)]
)
def test_nothing_to_say(rate, cut):
    assert warning(rate, cut, ASKS, 9) == ""


def test_one_line_with_the_mend():
    said = warning(0.0, 0.9, SILENT, 9)
    assert said.startswith("no reply has a valid format, and 90% are cut at rollout.max_new_tokens=9: few models")
    assert "prompt.template (as {flag})" in said and "method=sft" in said and "\n" not in said
    assert "though asked to" in warning(0.0, 0.9, ASKS, 9)
    direct = warning(0.0, 0.9, PromptConfig(style="direct"), 9, "evaluate.direct_max_new_tokens")
    assert "evaluate.direct_max_new_tokens=9" in direct and "Answer:" not in direct


def test_once_after_the_first_steps():
    watch, cfg = CutReplies(), config(max_steps=50)
    bad, sft = {"format_rate": 0.0, "rollout/truncated": 1.0}, {"loss": 1.0}
    said = [watch.step(metrics, cfg) for metrics in (sft, bad, bad, sft, bad, bad, bad)]
    assert [bool(line) for line in said] == [False, False, False, False, True, False, False]


def test_one_good_reply_is_enough():
    watch, cfg = CutReplies(), config(max_steps=50)
    bad = {"format_rate": 0.0, "rollout/truncated": 1.0}
    assert not any(watch.step(metrics, cfg) for metrics in (bad, {**bad, "format_rate": 0.1}, bad, bad, bad))


def test_short_runs():
    bad = {"format_rate": 0.0, "rollout/truncated": 1.0}
    assert CutReplies().step(bad, config(max_steps=1))
