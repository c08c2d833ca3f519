"""Sources that read JSON lists or a folder for each problem, on small sets in their published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dyme.data import (
    AOKVQASource,
    DataError,
    DymeReleaseSource,
    Geometry3KSource,
    SlakeSource,
    VQARadSource,
    load_records,
    read_records,
)
from dyme.data.__main__ import main
from dyme.data.spec import parse_spec
from dyme.rewards.vqa import verify_vqa


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def checked(capsys, spec: object) -> tuple[int, str, dict]:
    """Exit status and text of `data check`, and the configuration that it ends with."""
    status = main(["check", str(spec)])
    out = capsys.readouterr().out
    return status, out, yaml.safe_load(out[out.index("\ndata:\n") :]) if "\ndata:\n" in out else {}


def reasons(source) -> list[str]:
    return [row.reason for row in read_records(source).bad]


def bus(**changes: object) -> dict:
    return {
        "split": "train",
        "image_id": 299207,
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": ["ride", "bus", "taxi", "cab", "cab", "taxi", "cab", "ride", "travel", "traffic"],
        "difficult_direct_answer": False,
        "rationales": ["He has bags.", "A train would not be on the street. ", "He has bags."],
        **changes,
    }


@pytest.fixture
def okvqa(tmp_path) -> dict[str, str]:
    picture(tmp_path / "coco" / "train2017" / "000000299207.jpg")
    entries = [bus(), bus(question_id="second", difficult_direct_answer=True, correct_choice_idx=0)]
    path = write(tmp_path / "aokvqa" / "aokvqa_v1p0_train.json", entries)
    return {"path": str(path), "images": str(tmp_path / "coco" / "train2017")}


def test_aokvqa(okvqa, capsys):
    [record] = load_records(AOKVQASource(**okvqa))
    assert record.id == "22MexNkBPpdZGX6sxbxVBH" and record.choices == ()
    votes = ("cab", "cab", "cab", "ride", "ride", "taxi", "taxi", "bus", "travel", "traffic")
    assert record.answers == votes  # the commonest is memorized, and every person counts
    assert verify_vqa("cab", record) == pytest.approx(0.9) and verify_vqa("bus", record) == pytest.approx(0.3)
    assert record.hint == "He has bags. A train would not be on the street."
    assert record.image.load().size == (8, 6)
    first, second = load_records(AOKVQASource(**okvqa, task="choice"))
    assert (first.answers, second.answer) == (("cab",), "skateboarder")
    assert first.choices == ("skateboarder", "train", "delivery", "cab")
    assert len(load_records(AOKVQASource(**okvqa, task="choice", limit=1))) == 1
    status, out, config = checked(capsys, okvqa["path"])
    assert status == 0 and "guessed: it holds direct_answers" in out
    assert config["data"]["train"] == {"source": "aokvqa", **okvqa}


def test_aokvqa_errors(okvqa, tmp_path):
    hidden = bus(correct_choice_idx=None, direct_answers=None)
    path = write(tmp_path / "alone" / "deep" / "aokvqa_v1p0_test.json", [hidden, bus(image_id=None), bus(image_id=7)])
    source = {"path": str(path), "images": okvqa["images"]}
    direct, no_id, no_picture = reasons(AOKVQASource(**source))
    assert "no direct_answers: the test file comes without answers" in direct
    assert "no image_id" in no_id and "000000000007.jpg: no such picture" in no_picture
    assert "no correct_choice_idx" in reasons(AOKVQASource(**source, task="choice"))[0]
    write(path, [bus(correct_choice_idx=4), bus(direct_answers="cab")])
    assert "correct_choice_idx 4 names none" in reasons(AOKVQASource(**source, task="choice"))[0]
    assert "is not a list of texts" in reasons(AOKVQASource(**source))[0]
    with pytest.raises(DataError, match="correct data images"):
        read_records(AOKVQASource(path=str(path), images=str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"say where .*aokvqa:path=.*,images=<folder>"):
        parse_spec(str(path))


def slake(**changes: object) -> dict:
    return {
        "img_id": 1,
        "img_name": "xmlab1/source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": 0,
        **changes,
    }


def test_slake(tmp_path, capsys):
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    chinese = slake(q_lang="zh", question="图像的成像方式是什么?", answer="核磁共振", qid=1)
    for split in ("train", "validate", "test"):
        write(tmp_path / f"{split}.json", [chinese, slake(), slake(qid=2, content_type="Organ")])
    records = load_records(SlakeSource(path=str(tmp_path)))
    assert [(r.id, r.answer, r.kind) for r in records] == [("train-2", "MRI", "Modality"), ("train-3", "MRI", "Organ")]
    assert records[0].image.load().size == (8, 6)
    assert [r.id for r in load_records(SlakeSource(path=str(tmp_path), limit=1))] == ["train-2"]
    [record] = load_records(SlakeSource(path=str(tmp_path), language="zh", split="test"))
    assert record.answer == "核磁共振"
    status, out, config = checked(capsys, tmp_path)
    assert status == 0 and "Modality 1, Organ 1" in out
    assert [config["data"][part]["split"] for part in ("train", "eval")] == ["train", "validate"]
    [named] = parse_spec(str(tmp_path / "test.json"))
    assert named.source == SlakeSource(path=str(tmp_path), split="test")
    write(tmp_path / "test.json", [slake(q_lang=None), slake(img_name="")])
    assert [r.split(";")[0] for r in reasons(SlakeSource(path=str(tmp_path), split="test"))] == [
        "no q_lang",
        "no img_name",
    ]
    (tmp_path / "test.json").unlink()
    with pytest.raises(DataError, match="splits in the folder: train, validate"):
        read_records(SlakeSource(path=str(tmp_path), split="test"))


def scan(**changes: object) -> dict:
    return {
        "qid": "0",
        "phrase_type": "freeform",
        "image_name": "synpic54610.jpg",
        "image_organ": "HEAD",
        "question": "Are regions of the brain infarcted?",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
        **changes,
    }


def test_vqa_rad(tmp_path, capsys):
    picture(tmp_path / "VQA_RAD Image Folder" / "synpic54610.jpg")
    entries = [scan(), scan(phrase_type="test_freeform", answer=3), scan(phrase_type="para", question_type="POS, SIZE")]
    path = write(tmp_path / "VQA_RAD Dataset Public.json", entries)
    records = load_records(VQARadSource(path=str(path)))
    assert [(r.answer, r.kind) for r in records] == [("Yes", "PRES"), ("3", "PRES"), ("Yes", "POS, SIZE")]
    assert records[0].image.load().size == (8, 6) and records[1].id == "VQA_RAD Dataset Public-2"
    assert [r.answer for r in load_records(VQARadSource(path=str(path), split="test"))] == ["3"]
    assert len(load_records(VQARadSource(path=str(path), split="train"))) == 2
    status, _, config = checked(capsys, path)
    assert status == 0 and config["data"] == {
        part: {"source": "vqa_rad", "path": str(path), "split": split}
        for part, split in (("train", "train"), ("eval", "test"))
    }
    write(path, [scan(phrase_type=None), scan(image_name=None)])
    assert "use split: all" in reasons(VQARadSource(path=str(path), split="test"))[0]
    assert "no image_name" in reasons(VQARadSource(path=str(path)))[0]
    with pytest.raises(DataError, match="correct data images"):
        read_records(VQARadSource(path=str(path), images=str(tmp_path / "none")))


def problem(**changes: object) -> dict:
    return {
        "id": 2,
        "problem_text": "Find $x$.",
        "choices": ["9", "12", "15", "\\frac { 3 } { 2 }"],
        "answer": "D",
        "problem_type_graph": ["Triangle"],
        "problem_type_goal": ["Length"],
        **changes,
    }


def test_geometry3k(tmp_path, capsys):
    for split in ("train", "val"):
        for number in ("10", "2"):
            write(tmp_path / split / number / "data.json", problem())
            picture(tmp_path / split / number / "img_diagram.png")
    records = load_records(Geometry3KSource(path=str(tmp_path)))
    assert [r.id for r in records] == ["train-2", "train-10"]
    assert (records[0].question, records[0].answer) == ("Find $x$.", "\\frac { 3 } { 2 }")
    assert records[0].choices[1] == "12" and records[0].kind == "Length"
    assert records[1].image.path == tmp_path / "train" / "10" / "img_diagram.png"
    assert records.origin(1) == (tmp_path / "train" / "10" / "data.json", 1)
    status, out, config = checked(capsys, tmp_path)
    assert status == 0 and "option 2" in out and config["data"]["eval"]["split"] == "val"
    write(tmp_path / "val" / "2" / "data.json", problem(answer="E"))
    write(tmp_path / "val" / "3" / "data.json", problem(choices=None))
    (tmp_path / "val" / "10" / "img_diagram.png").write_bytes(b"")
    bad = read_records(Geometry3KSource(path=str(tmp_path), split="val")).bad
    assert [row.file.parent.name for row in bad] == ["2", "3", "10"]
    assert "answer 'E' is not one of the letters ABCD" in str(bad[0]) and "no choices" in str(bad[1])
    with pytest.raises(DataError, match="splits in the folder: train, val"):
        read_records(Geometry3KSource(path=str(tmp_path), split="test"))


def test_dyme_release(tmp_path, capsys):
    picture(tmp_path / "images" / "1.png")
    entry = {
        "question": "Think first. How many bars are red?",
        "question_wo_prompt": "How many bars are red?",
        "answer": "3",
        "hint": "The bars a, b and c are red.",
        "image": "images/1.png",
    }
    path = write(tmp_path / "train.json", [entry, {**entry, "image": "1.png", "question_wo_prompt": None}])
    records = read_records(DymeReleaseSource(path=str(path)))
    assert (records[0].id, records[0].question, records[0].answer) == ("train-1", "How many bars are red?", "3")
    assert records[0].hint == "The bars a, b and c are red." and records[0].image.load().size == (8, 6)
    assert [row.line for row in records.bad] == [2]
    source = DymeReleaseSource(path=str(path), images=str(tmp_path / "images"))
    assert [r.question for r in read_records(source)] == ["Think first. How many bars are red?"]
    write(path, [entry])
    status, _, config = checked(capsys, path)
    assert status == 0 and config["data"] == {"train": {"source": "dyme_release", "path": str(path)}}
    with pytest.raises(DataError, match="name the JSON file in it"):
        read_records(DymeReleaseSource(path=str(tmp_path)))


def test_a_list_of_no_known_set_says_so(tmp_path):
    with pytest.raises(DataError, match="keys of its first entry: a, b"):
        parse_spec(str(write(tmp_path / "other.json", [{"b": 1, "a": 2}])))
