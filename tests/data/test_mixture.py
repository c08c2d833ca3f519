"""Mixtures: exact shares, one order for a seed, unique ids, and bad rows of every part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.config import load_config
from dyme.data import ChartsSource, DataError, JsonlSource, MixtureSource, SourceConfig, load_records, read_records
from dyme.data.__main__ import main
from dyme.settings.errors import ConfigError

ADAPTER = TypeAdapter(SourceConfig)


def words(path: Path, n: int, bad: int = 0) -> dict:
    rows = [json.dumps({"question": f"{path.stem} {i}?", "answer": str(i)}) for i in range(n)] + ["{"] * bad
    path.write_text("\n".join(rows), encoding="utf-8")
    return {"source": "jsonl", "path": str(path)}


def mixture(tmp_path: Path, count: int = 40, bad: int = 0, **settings: object) -> MixtureSource:
    parts = [
        {"name": "words", "weight": 3, "records": words(tmp_path / "w.jsonl", 12, bad)},
        {"name": "charts", "records": {"source": "charts", "count": 50}},
    ]
    return ADAPTER.validate_python({"source": "mixture", "parts": parts, "count": count, **settings})


def test_shares_are_exact_and_ids_unique(tmp_path):
    records = load_records(mixture(tmp_path))
    assert len(records) == 40 and len({r.id for r in records}) == 40
    assert Counter(r.id.split("/")[0] for r in records) == {"words": 30, "charts": 10}
    assert Counter(r.question for r in records if r.id.startswith("words")).most_common()[-1][1] == 2
    assert sum(r.id.endswith("@2") for r in records) == 12 and sum(r.id.endswith("@3") for r in records) == 6
    for k, record in enumerate(records):
        file, line = records.origin(k)
        if record.id.startswith("words"):
            assert file == tmp_path / "w.jsonl" and record.id.startswith(f"words/w-{line}")
    assert len(load_records(mixture(tmp_path, count=3))) == 3


def test_the_seed_decides_the_order(tmp_path):
    ids = [[r.id for r in load_records(mixture(tmp_path, seed=seed))] for seed in (5, 5, 6)]
    assert ids[0] == ids[1] != ids[2]
    mixed = [name.split("/")[0] for name in ids[0]]
    assert mixed != sorted(mixed) and mixed != sorted(mixed, reverse=True)


def test_bad_rows_count_within_their_part(tmp_path):
    source = mixture(tmp_path, count=1000, bad=2)
    assert [row.line for row in read_records(source).bad] == [13, 14]
    with pytest.raises(DataError, match="2 of 14 rows are bad"):
        load_records(source)
    assert len(load_records(source, max_bad_fraction=0.2)) == 1000
    empty = {"name": "a", "records": words(tmp_path / "e.jsonl", 0, 1)}
    with pytest.raises(DataError, match=r"e\.jsonl: part 'a' of the mixture has no good row"):
        read_records(ADAPTER.validate_python({"source": "mixture", "count": 2, "parts": [empty]}))


def test_wrong_settings(tmp_path):
    part = {"name": "a", "records": {"source": "charts", "count": 3}}
    with pytest.raises(ValidationError, match="the name 'a' is used twice"):
        ADAPTER.validate_python({"source": "mixture", "count": 2, "parts": [part, part]})
    path = tmp_path / "run.yaml"
    wrong = {**part, "records": {**part["records"], "cuont": 1}}
    data = {"train": {"source": "mixture", "count": 2, "parts": [part, {**wrong, "name": "b"}]}}
    path.write_text(yaml.safe_dump({"model": {"path": "x"}, "data": data}))
    with pytest.raises(ConfigError, match=r"'data\.train\.parts\.1\.records\.cuont'; nearest: .*count"):
        load_config(path)


def test_check_reads_a_run_with_a_mixture_and_repeats_its_section(tmp_path, capsys):
    source = mixture(tmp_path, seed=2)
    train = source.model_dump(mode="json", exclude_unset=True)
    run = {"data": {"train": train, "eval": {"source": "charts", "count": 3}}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    status = main(["check", str(path)])
    out = capsys.readouterr().out
    data = yaml.safe_load(out[out.index("\ndata:\n") :])["data"]
    assert status == 0 and "32x32 10" in out
    assert ADAPTER.validate_python(data["train"]) == source
    assert ADAPTER.validate_python(data["eval"]) == ChartsSource(count=3)
    assert isinstance(source.parts[0].records, JsonlSource)
