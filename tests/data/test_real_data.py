"""The public data sets, where they are: DYME_DATA names the folder that holds easy_vqa, gsm8k, nlvr, ..."""

from __future__ import annotations

import os

import pytest

from dyme.data import Gsm8kSource, ImageFolderSource, load_records
from dyme.data.check import check

pytestmark = pytest.mark.skipif(not os.environ.get("DYME_DATA"), reason="DYME_DATA names no folder of data sets")

FOLDERS = {
    ("easy_vqa", "train"): 38_575,
    ("easy_vqa", "test"): 9_673,
    ("puzzlevqa", "train"): 1_600,
    ("puzzlevqa", "test"): 400,
    ("nlvr", "train"): 989,
    ("nlvr", "test"): 990,
    ("vqa_rad", "train"): 1_813,
    ("vqa_rad", "test"): 435,
}


@pytest.mark.parametrize(("name", "split"), FOLDERS, ids=["-".join(pair) for pair in FOLDERS])
def test_folders_have_their_published_size(name, split):
    source = ImageFolderSource(path=f"${{DYME_DATA}}/{name}", split=split)
    records = load_records(source, max_bad_fraction=0.0)
    assert len(records) == FOLDERS[name, split] and not records.bad
    assert all(r.image is not None and r.question and r.answer for r in records)
    assert records[-1].image.load().mode == "RGB"
    if name == "puzzlevqa":
        assert all(r.choices and r.hint and r.facts for r in records)


@pytest.mark.parametrize("name", ["puzzlevqa", "vqa_rad", "easy_vqa", "nlvr"])
def test_sampled_pictures_decode(name):
    report = check(ImageFolderSource(path=f"${{DYME_DATA}}/{name}", split="test", limit=150))
    assert report.decoded > 10 and not report.bad and sum(report.sizes.values()) == report.decoded


@pytest.mark.parametrize(("split", "count"), [("train", 7_473), ("test", 1_319)])
def test_gsm8k_has_integer_answers_and_clean_solutions(split, count):
    records = load_records(Gsm8kSource(path=f"${{DYME_DATA}}/gsm8k/{split}.jsonl"), max_bad_fraction=0.0)
    assert len(records) == count
    assert all(r.answer.lstrip("-").isdigit() and r.hint and "<<" not in r.hint for r in records)
