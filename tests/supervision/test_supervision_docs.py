"""docs/supervision.md against the code: settings, the table of scores, the refined example, the prompt file."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import yaml

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.facts import rule_facts
from dyme.supervision.judge_prompts import TEXTS, load_prompts, schema_of
from dyme.supervision.lexical import thinking_score
from dyme.supervision.readings import contradicted_share
from dyme.supervision.refiner import rules_trace
from dyme.supervision.templates import TemplatePool
from tests.helpers.launching import ROOT

PAGE = (ROOT / "docs" / "supervision.md").read_text(encoding="utf-8")


def test_settings_and_their_defaults():
    (block,) = re.findall(r"^```yaml\n(supervision:.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    SupervisionConfig.model_validate(yaml.safe_load(block)["supervision"])
    told = dict(re.findall(r"^\| `([a-z_.]+)` \| (\S*) ?\|", PAGE.split("## Facts")[0], re.MULTILINE))
    settings = SupervisionConfig().model_dump(mode="json")
    templates = {f"templates.{key}": value for key, value in settings.pop("templates").items()}
    assert told == {key: str(value) for key, value in {**settings, **templates}.items()}


def test_the_table_of_scores():
    item = Record("r", "?", ("1",), facts=re.search(r'for the facts "(.+?)"', PAGE)[1])
    rows = re.findall(r"^\| `(red 4.*?)` \| (\S+) \| (\S+) \| (\S+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for trace, f1, c, t in rows:
        assert thinking_score(trace, item) == pytest.approx(float(f1), abs=5e-4)
        assert contradicted_share(trace, item.facts) == pytest.approx(float(Fraction(c)))
        assert thinking_score(trace, item, 1.0) == pytest.approx(float(t), abs=5e-4)


def test_the_refined_example():
    hint, facts, refined = re.search(r"    hint     (.+)\n    facts    (.+)\n    refined  (.+)\n", PAGE).groups()
    item = Record("r", "red plus blue?", ("6",), hint=hint, facts=facts)
    assert rules_trace(item, rule_facts(item), TemplatePool(4)).trace == refined


def test_the_prompt_file_and_the_table_of_purposes(tmp_path):
    (block,) = re.findall(r"^```yaml\n(format:.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    question = load_prompts(str(tmp_path)).question("check", "medical", {"trace": "clear"}, "r")
    assert question.user.startswith("Findings:\n(none)\nThe reading to rate:\n<<<TRACE ")
    rows = re.findall(r"^\| (\w+) \| (`\{.*\}`) \| `\{\"(\w+)\"", PAGE, re.MULTILINE)
    assert {purpose: tuple(re.findall(r"\{(\w+)\}", texts)) for purpose, texts, _ in rows} == TEXTS
    assert all(schema_of(purpose)["required"] == [name] for purpose, _, name in rows)
