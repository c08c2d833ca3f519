"""The check and show commands: what they guess, print and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dyme.data import ChartsSource, DataError, Gsm8kSource, ImageFolderSource, JsonlSource, Record
from dyme.data.__main__ import main
from dyme.data.check import SAMPLE, answer_type, check
from dyme.data.spec import parse_spec
from tests.helpers.broken_files import bomb


def lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def folder(path: Path, n: int, bad: int = 0) -> Path:
    """An imagefolder with n rows and n pictures of which the first `bad` are truncated."""
    rows = [{"file_name": f"{i}.png", "question": "what?", "answer": f"{i}"} for i in range(n)]
    lines(path / "metadata.jsonl", rows)
    for i in range(n):
        Image.effect_noise((40, 30), 60).save(path / f"{i}.png")
    for i in range(bad):
        file = path / f"{i}.png"
        file.write_bytes(file.read_bytes()[:300])
    return path


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = main(list(arguments))
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("12", "integer"),
        ("-3", "integer"),
        ("1,200", "integer"),
        ("3.5", "decimal"),
        (".5", "decimal"),
        ("Yes", "yes/no"),
        ("false", "yes/no"),
        ("B", "choice letter"),
        ("(c)", "choice letter"),
        ("red", "word"),
        ("dark red", "phrase"),
    ],
)
def test_answer_types(answer, kind):
    assert answer_type(Record("a", "q", (answer,))) == kind
    assert answer_type(Record("a", "q", (answer,), choices=(answer, "x"))) == "option"


def test_check_counts_and_passes(tmp_path, capsys):
    rows = [{"question": "q?", "answer": a, "hint": "h", "kind": "k"} for a in ("1", "2.5", "yes", "red", "a b")]
    status, out = run(capsys, "check", str(lines(tmp_path / "a.jsonl", rows)))
    assert status == 0
    for text in ("guessed: a file", "5: 5 good, 0 bad", "hint all", "facts none", "k 5", "decimal 1", "1 to 3 char"):
        assert text in out, out


def test_check_lists_every_bad_row_and_fails(tmp_path, capsys):
    bomb(tmp_path / "bomb.png")
    good = {"question": "q?", "answer": "1"}
    rows = [good] * 20 + ["{"] * 12 + [{**good, "image": "bomb.png"}] + [{**good, "id": "[red]x"}] * 2
    path = lines(tmp_path / "a.jsonl", rows)
    status, out = run(capsys, "check", str(path))
    assert status == 1
    assert all(f"{path}:{line}: broken JSON" in out for line in range(21, 33))
    assert f"{path}:33" in out and "64 megapixels" in out
    assert f"{path}:35 ([red]x): id was used before, in line 34" in out
    assert "35: 21 good, 14 bad (40.00%)" in out and "more than 1% of the rows are bad" in out


def test_one_percent_bad_is_still_fine(tmp_path, capsys):
    rows = ["{"] + [{"question": "q?", "answer": "1"}] * 99
    status, out = run(capsys, "check", str(lines(tmp_path / "a.jsonl", rows)))
    assert status == 0 and "1 bad (1.00%)" in out


def test_truncated_pictures_are_found_by_decoding(tmp_path, capsys):
    status, out = run(capsys, "check", str(folder(tmp_path / "set", 20, bad=2)))
    assert status == 1 and "18 good, 2 bad" in out and "guessed: it holds metadata.jsonl" in out
    assert out.count("picture is truncated or damaged") == 2 and "metadata.jsonl:1 (set-1)" in out
    assert "20, of which 20 decoded" in out and "40x30 18" in out


def test_all_decodes_what_the_sample_leaves_out(tmp_path):
    n = SAMPLE + 30
    source = ImageFolderSource(path=str(folder(tmp_path, n)))
    assert (check(source).decoded, check(source).pictures) == (SAMPLE, n)
    assert check(source, decode_all=True).decoded == n


def test_shared_picture_counts_once_and_spoils_all_its_rows(tmp_path):
    folder(tmp_path, 1, bad=1)
    lines(tmp_path / "metadata.jsonl", [{"file_name": "0.png", "question": "q?", "answer": "1"}] * 3)
    report = check(ImageFolderSource(path=str(tmp_path)))
    assert report.pictures == 1 and [row.line for row in report.bad] == [1, 2, 3] and report.good == 0


def test_written_sources(tmp_path):
    [charts] = parse_spec("charts:scale=tiny,count=100,kinds=[sum,value],caption_fraction=0.5")
    assert charts.source == ChartsSource(count=100, kinds=("sum", "value"), caption_fraction=0.5)
    [gsm8k] = parse_spec("gsm8k:path=${X}/7.jsonl,limit=5")
    assert gsm8k.source == Gsm8kSource(path="${X}/7.jsonl", limit=5)
    [folder_] = parse_spec("imagefolder:path=007,split=train")
    assert folder_.source == ImageFolderSource(path="007", split="train")


def test_guessed_sources(tmp_path):
    official = lines(tmp_path / "train.jsonl", [{"question": "q", "answer": "so\n#### 3"}])
    assert isinstance(parse_spec(str(official))[0].source, Gsm8kSource)
    assert isinstance(parse_spec(str(lines(tmp_path / "gsm8k.jsonl", [{}])))[0].source, JsonlSource)  # by content only
    assert isinstance(parse_spec(str(lines(tmp_path / "other.jsonl", ["{"])))[0].source, JsonlSource)
    for split in ("train", "test"):
        folder(tmp_path / "set" / split, 1)
    assert [s.source.split for s in parse_spec(str(tmp_path / "set"))] == ["test", "train"]
    [named] = parse_spec(str(tmp_path / "set" / "train" / "metadata.jsonl"))
    assert isinstance(named.source, ImageFolderSource) and "guessed" in named.label


def test_run_configuration_checks_train_and_eval(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: dyme\ndata:\n  train: {source: charts, count: 30}\n"
        "  eval: {source: charts, count: 10, split: test, scale: full}\n"
    )
    status, out = run(capsys, "check", str(path))
    assert status == 0 and "run.yaml: data.train" in out and "run.yaml: data.eval" in out
    assert "32x32 30" in out and "640x480 10" in out


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("charts:cont=3", "cont: Extra inputs"),
        ("charts:count", "'count' is not key=value"),
        ("chart:count=3", "no such file or folder; give a .jsonl file"),
        ("jsonl:path=${NOT_SET_HERE}/a", "NOT_SET_HERE is not set"),
    ],
)
def test_specs_that_name_nothing(spec, reason, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    status, out = run(capsys, "check", spec)
    assert status == 2 and reason in out and "Traceback" not in out


def test_yaml_and_folder_without_data_say_so(tmp_path):
    (tmp_path / "a.yaml").write_text("method: dyme\n")
    with pytest.raises(DataError, match=r"neither data\.train nor data\.eval"):
        parse_spec(str(tmp_path / "a.yaml"))
    with pytest.raises(DataError, match="nor a subfolder holds") as error:
        parse_spec(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_show_writes_a_sheet(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    status, text = run(capsys, "show", "charts:count=40,trace=low", "--n", "6", "--out", str(out))
    sheet = Image.open(out)
    assert status == 0 and "6 of 40 records" in text
    assert sheet.width == 4 * 420 and len(sheet.getcolors(1 << 20)) > 8


def test_show_takes_text_and_broken_pictures(tmp_path, capsys):
    rows = [
        {"question": "why? " * 60, "answer": "1", "hint": "h " * 900, "choices": ["1", "2"]},
        {"question": "q", "answer": "1", "image": "0.png"},
    ]
    folder(tmp_path, 1, bad=1)
    out = tmp_path / "sheet.png"
    status, _ = run(capsys, "show", str(lines(tmp_path / "a.jsonl", rows)), "--out", str(out))
    assert status == 0 and (255, 0, 0) in {c for _, c in Image.open(out).getcolors(1 << 20)}
    status, text = run(capsys, "show", str(lines(tmp_path / "b.jsonl", ["{"])), "--out", str(out))
    assert status == 2 and "no good row to show" in text
