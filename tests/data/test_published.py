"""Sources of published data sets: each test writes a small set in the layout it is downloaded in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dyme.data import ChartQASource, DataError, DatasetSource, ImageError, load_records, read_records
from dyme.data.__main__ import main
from dyme.data.check import check
from dyme.data.dataset import StoredPicture
from dyme.data.spec import parse_spec


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def checked(capsys, spec: object) -> tuple[int, str, dict]:
    """Exit status and text of `data check`, and the configuration that it ends with."""
    status = main(["check", str(spec)])
    out = capsys.readouterr().out
    return status, out, yaml.safe_load(out[out.index("\ndata:\n") :]) if "\ndata:\n" in out else {}


def saved(folder: Path, n: int = 3):
    import datasets

    features = datasets.Features(
        {
            "query": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "picture": datasets.Image(),
        }
    )
    rows = {
        "query": [f"is it {i}?" for i in range(n)],
        "label": [i % 2 for i in range(n)],
        "picture": [Image.new("RGBA", (8, 6), (0, 0, 255, 0)) for _ in range(n - 1)] + [None],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(folder / "splits"))


FIELDS = {"question": "query", "answer": "label", "image": "picture"}


def test_dataset_on_disk(tmp_path, capsys):
    saved(tmp_path)
    records = load_records(DatasetSource(path=str(tmp_path / "one"), fields=FIELDS))
    assert [(r.id, r.question, r.answer) for r in records][:2] == [
        ("one-1", "is it 0?", "no"),
        ("one-2", "is it 1?", "yes"),
    ]
    assert records[2].image is None and records.lines == (1, 2, 3)
    again = pickle.loads(pickle.dumps(records))
    assert len(pickle.dumps(records)) < 3000, "pictures must not travel with their records"
    assert again[1].image.load().getpixel((0, 0)) == (255, 255, 255), "transparency goes on white"
    source = DatasetSource(path=str(tmp_path / "splits"), split="train", fields=FIELDS, limit=2)
    assert [r.id for r in load_records(source)] == ["train-1", "train-2"]
    assert check(source).sizes == {(8, 6): 2}
    status, out, _ = checked(capsys, f"dataset:path={tmp_path}/splits,split=test")
    assert status == 1 and "no question; its keys are" in out and "picture" in out
    assert [n.source.split for n in parse_spec(str(tmp_path / "splits"))] == ["test", "train"]
    assert parse_spec(str(tmp_path / "one"))[0].source == DatasetSource(path=str(tmp_path / "one"))


def test_dataset_errors_name_the_mend(tmp_path):
    saved(tmp_path)
    for source, reason in [
        (DatasetSource(path=str(tmp_path)), "holds neither dataset_dict.json nor state.json"),
        (DatasetSource(path=str(tmp_path / "none")), "no such folder"),
        (DatasetSource(path=str(tmp_path / "one"), split="train"), "leave out split"),
        (DatasetSource(path=str(tmp_path / "splits")), "set split to one of: test, train"),
        (DatasetSource(path=str(tmp_path / "one"), fields={"answer": "lable"}), "'lable'.*label, picture, query"),
    ]:
        with pytest.raises(DataError, match=reason):
            read_records(source)
    for file in (tmp_path / "splits" / "test").glob("*.arrow"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be opened"):
        read_records(DatasetSource(path=str(tmp_path / "splits"), split="test"))


def test_dataset_with_a_damaged_picture(tmp_path):
    import datasets

    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    rows = {"question": ["q?"], "image": [{"bytes": b"no picture", "path": None}]}
    made = datasets.Dataset.from_dict(rows, features=features).add_column("answer", [7])
    made.save_to_disk(str(tmp_path / "set"))
    [record] = load_records(DatasetSource(path=str(tmp_path / "set")))
    assert record.answer == "7"
    with pytest.raises(ImageError, match="row 1, column 'image': not a readable picture"):
        record.image.load()
    assert [row.line for row in check(DatasetSource(path=str(tmp_path / "set"))).bad] == [1]
    gone = StoredPicture(tmp_path / "gone", "image", 0)
    with pytest.raises(ImageError, match="cannot be read"):
        gone()


def test_dataset_of_pictures_alone_says_what_is_missing(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 6))] * 2}, features=features)
    made.save_to_disk(str(tmp_path / "set"))
    bad = read_records(DatasetSource(path=str(tmp_path / "set"))).bad
    assert [row.reason for row in bad] == ["no question; its keys are image"] * 2


def chartqa(root: Path) -> Path:
    for split in ("train", "val", "test"):
        picture(root / split / "png" / f"{split}1.png")
        human = [{"imgname": f"{split}1.png", "query": "How many bars?", "label": "3", "why": "count"}] * 2
        write(root / split / f"{split}_human.json", human)
        machine = [{"imgname": f"{split}1.png", "query": "Which year?", "label": "2011"}]
        write(root / split / f"{split}_augmented.json", machine)
    return root


def test_chartqa(tmp_path, capsys):
    root = chartqa(tmp_path / "ChartQA Dataset")
    records = load_records(ChartQASource(path=str(root)))
    assert [r.id for r in records] == ["train_human-1", "train_human-2", "train_augmented-1"]
    assert [r.kind for r in records] == ["human", "human", "augmented"] and records[0].hint is None
    assert (records[2].question, records[2].answer) == ("Which year?", "2011")
    assert records[2].image.load().size == (8, 6)
    assert records.origin(2) == (root / "train" / "train_augmented.json", 1)
    [machine] = load_records(ChartQASource(path=str(root), split="val", part="augmented"))
    assert machine.id == "val_augmented-1"
    hinted = load_records(ChartQASource(path=str(root), hint_key="why", limit=1))
    assert [r.hint for r in hinted] == ["count"]
    [file] = parse_spec(str(root / "val" / "val_human.json"))
    assert file.source == ChartQASource(path=str(root), split="val", part="human")
    status, out, config = checked(capsys, root)
    assert status == 0 and "human 2, augmented 1" in out
    assert config["data"] == {
        part: {"source": "chartqa", "path": str(root), "split": split}
        for part, split in (("train", "train"), ("eval", "val"))
    }


def test_chartqa_errors(tmp_path):
    root = chartqa(tmp_path)
    with pytest.raises(DataError, match=r"hint_key names the key 'trace'.*imgname, label, query, why"):
        load_records(ChartQASource(path=str(root), hint_key="trace"))
    write(root / "train" / "train_human.json", [{"query": "q", "label": "1"}, 3, {"imgname": "x.png", "query": "q"}])
    bad = read_records(ChartQASource(path=str(root), part="human")).bad
    assert [row.reason for row in bad] == [
        "no imgname; its keys are query, label",
        "a JSON int where an object is needed",
        "no answer; its keys are imgname, query",
    ]
    (root / "val" / "val_human.json").unlink()
    with pytest.raises(DataError, match=r"val_human\.json: no such file; correct path, split or part"):
        load_records(ChartQASource(path=str(root), split="val"))
    write(root / "test" / "test_human.json", {"a": 1})
    with pytest.raises(DataError, match="holds a JSON dict, not a list"):
        load_records(ChartQASource(path=str(root), split="test"))
    (root / "test" / "test_human.json").write_text("[{")
    with pytest.raises(DataError, match=r"test_human\.json:1: broken JSON"):
        load_records(ChartQASource(path=str(root), split="test"))
