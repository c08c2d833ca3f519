"""Settings that would end in a traceback later are refused in one line that names the key."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dyme.config import RunConfig, dump_config, load_config
from dyme.settings.deepspeed import read_deepspeed, unusable
from dyme.settings.errors import ConfigError, valid_keys
from dyme.settings.yaml_text import YamlError, read_yaml
from launchers.slurm import submit

YAMLS = {path.stem: path for path in sorted(Path(__file__).parents[1].glob("configs/*.yaml"))}
TREES = {name: yaml.safe_load(path.read_text()) for name, path in YAMLS.items()}
MINIMAL = "model: {path: some/folder}\ndata: {train: {source: charts, count: 9}}\n"
HERE = "@here@"
HOSTILE = [".inf", "-.inf", ".nan", "1e300", "1e-300", "-1", "0", "1.0", "1.0e+20", "9223372036854775808", "9" * 5000]
HOSTILE += [
    "true",
    "false",
    "[]",
    "{}",
    "null",
    "''",
    "2026-01-01",
    "!!binary aGk=",
    "!x y",
    "!!python/name:os.system ''",
]
HOSTILE += [
    '"a\\0b"',
    '"\\ud83d"',
    "[[[1]]]",
    "[true]",
    "{a: {b: 1}}",
    "{a: 1, a: 2}",
    "{[a]: 1}",
    "{1: 2}",
    "text",
    "&a [*a]",
]
HOSTILE += [
    "[" * 200 + "]" * 200,
    "{source: []}",
    "{source: {}}",
    "{start: true}",
    "[.inf, 1]",
    "[1, 1]",
    "~/x\u202e",
    "x" * 5000,
]


def paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Of every value below a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))


def replaced(tree: Any, path: tuple) -> Any:
    if not path:
        return HERE
    copy = dict(tree) if isinstance(tree, dict) else dict(enumerate(tree))
    copy[path[0]] = replaced(copy.get(path[0], {}), path[1:])
    return copy if isinstance(tree, dict) else list(copy.values())


def refusal(text: str, folder: Path) -> str:
    """The line, "" for a configuration that is taken; then it survives being written down."""
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        cfg = load_config(file)
    except ConfigError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 1000, line[:2000]
        return line.removeprefix(f"{file}: ")
    file.write_text(dump_config(cfg), encoding="utf-8")
    assert load_config(file) == cfg
    json.dumps(cfg.model_dump(mode="json"), allow_nan=False)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


PLACES = [(name, path) for name, tree in TREES.items() for path in paths(tree)]


@given(st.sampled_from(PLACES), st.sampled_from(HOSTILE))
@settings(derandomize=True, max_examples=200, deadline=None, database=None)
def test_any_value_at_any_key_of_a_shipped_yaml(folder, place, value):
    name, path = place
    text = yaml.safe_dump(replaced(TREES[name], path), width=10**6).replace(f"'{HERE}'", value)
    line = refusal(text, folder)
    # a value may also fail by what it does to the section: then one of the keys above is named
    assert not line or any(str(part) in line for part in path), (path, value[:50], line)


KEYS = [tuple(key.split(".")) for key in valid_keys(RunConfig)]


@given(st.sampled_from(KEYS), st.sampled_from(HOSTILE))
@settings(derandomize=True, max_examples=300, deadline=None, database=None)
def test_any_value_at_any_key_at_all(folder, path, value):
    text = yaml.safe_dump(replaced(yaml.safe_load(MINIMAL), path), width=10**6).replace(f"'{HERE}'", value)
    line = refusal(text, folder)
    assert not line or any(str(part) in line for part in path), (path, value[:50], line)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim: {betas: [0.9, 1]}", "'optim.betas.1': Input should be less than 1"),
        ("optim: {lr: 1.0e+300}", "'optim.lr': must be 0, or from 1e-30 to 1e+09 in size, got 1e+300"),
        ("optim: {lr: true}", "'optim.lr': write a number, text or list, got True"),
        ("reward: {length: false}", "'reward.length': write settings below it (key: value), got False"),
        ("run: {seed: 9223372036854775808}", "'run.seed': "),
        ("run: {seed: -1}", "'run.seed': "),
        ("run: false", "'run': write settings below it (key: value), got False"),
        ("run: []", "'run': write settings below it (key: value), got []"),
        ("optim: false", "'optim': write settings below it (key: value), got False"),
        ("rollout: {group_size: 1.0e+20}", "'rollout.group_size': "),
        ("rollout: {group_size: 1e20}", "'rollout.group_size': "),
        ("optim: {lr: 1.0e-4, lr: 1.0e-3}", "'optim.lr' is given twice (line 3)"),
        ("model: {path: other}", "'model' is given twice (line 3)"),
        ("run: {dir: !!binary aGk=}", "'run.dir': the tag 'tag:yaml.org,2002:binary' is not taken"),
        ('run: {dir: "a\\0b"}', "'run.dir': 'a\\x00b' a setting holds no NUL byte"),
        ('prompt: {system: "\\ud83d"}', "'prompt.system': '\\ud83d' holds half a character"),
        ("optim: {1: 2}", "'optim': the key '1' is no text"),
        ("optim: {on: 2}", "'optim': the key 'on' is no text"),
        ("? {a: b}\n: 1", "the key 'a mapping' is no text"),
        ("run: &r {dir: *r}", "'run.dir': an alias that holds itself"),
    ],
)
def test_what_is_wrong_is_named(folder, text, told):
    assert told in refusal(MINIMAL + text, folder)


def test_a_date_is_text_where_text_is_wanted(folder):
    (folder / "date.yaml").write_text(MINIMAL + "run: {dir: 2026-01-01}")
    cfg = load_config(folder / "date.yaml")
    assert cfg.run.dir == "2026-01-01"
    (folder / "date.yaml").write_text(dump_config(cfg))
    assert load_config(folder / "date.yaml") == cfg
    assert "'run.seed'" in refusal(MINIMAL + "run: {seed: 2026-01-01}", folder)


def test_nested_aliases_cost_no_memory(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    begun = time.monotonic()
    assert "more than 100,000 values, aliases counted in full" in refusal(MINIMAL + "\n".join(lines), folder)
    assert time.monotonic() - begun < 5
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    with pytest.raises(YamlError, match="more than 1,048,576 characters"):
        read_yaml("x" * (1 << 21))


@pytest.mark.parametrize("content", ["[]", "[1]", "5", "{", "null", '{"zero_optimization": []}', "[" * 100_000, "NaN"])
def test_a_deepspeed_json_that_is_none(tmp_path, content):
    file = tmp_path / "ds.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"^deepspeed: "):
        read_deepspeed(str(file))
    problem = unusable(str(file))
    assert problem is not None and "\n" not in str(problem)
    assert unusable("zero3") is None and unusable(str(tmp_path / "to_come.json")) is None


@pytest.mark.parametrize(
    "number", ["--nodes=-5", "--nodes=0", "--gpus-per-node=-1", "--cpus-per-task=0", "--nodes=1" + "0" * 30]
)
def test_numbers_of_nodes(number, capsys):
    with pytest.raises(SystemExit):
        submit.parse(["--config", "x.yaml", "--nodes=1", number])
    assert f"{number} must be from" in capsys.readouterr().err


def test_every_number_has_bounds():
    with pytest.raises(ValidationError, match="must be at most 4294967295 in size"):
        RunConfig.model_validate({**yaml.safe_load(MINIMAL), "run": {"keep_last": 2**40}})
