"""Prediction with an exported model that was taught one reply: single questions, batches that go on, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dyme.checkpoint.recipe import Recipe, RecipeError, read_recipe, write_recipe
from dyme.families import Prompt, build_family
from dyme.families.causal_lm import CausalLM
from dyme.predict.__main__ import _print_answer, main
from dyme.predict.answer import parse_reply
from dyme.predict.predictor import Predictor
from dyme.predict.settings import Settings
from dyme.settings.prompt import PromptConfig
from tests.helpers.launching import ROOT, environment

REPLY = "two bars.\nAnswer: 4"
PROMPT = PromptConfig(template="{question} end with {flag}", choices_template=" of {choices}")


def export(folder: Path, name: str, spec: SimpleNamespace, reply: str = REPLY) -> Path:
    """A tiny model that gives one reply to whatever it is asked."""
    torch.manual_seed(0)
    family, model = build_family(name, spec, ["how many bars? end with Answer:", reply] * 50)
    prompts = [
        family.encode(text) for text in ("how many bars? end with Answer:", "what of (A) 4 (B) 5 end with Answer:")
    ]
    if family.modalities:
        prompts += [
            family.encode("how many bars? end with Answer:", [Image.new("RGB", (32, 32), c)]) for c in ("red", "blue")
        ]
    target = torch.tensor(family.encode_reply(reply))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        for prompt in prompts:
            ids = torch.cat([prompt.input_ids, target])[None]
            positions = torch.arange(ids.shape[1])[None]
            hidden = family.hidden(model, ids, torch.ones_like(ids), positions, prompt.pixels)
            logits = family.head(model)(hidden[0, len(prompt) - 1 : -1])
            torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    family.export(folder)
    write_recipe(Recipe(prompt=PROMPT, max_new_tokens=24, family=family.name), folder)
    return folder


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SimpleNamespace) -> Path:
    return export(tmp_path_factory.mktemp("vlm") / "export", "idefics3", tiny_spec)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SimpleNamespace) -> Path:
    return export(tmp_path_factory.mktemp("llama") / "export", "causal_lm", tiny_spec)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "chart.png")
    return tmp_path / "chart.png"


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- one question ----------


def test_the_command_prints_trace_and_answer(vlm: Path, picture: Path) -> None:
    command = [sys.executable, "-m", "dyme.predict", "--model", vlm, "--image", picture, "how many bars?"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "two bars.\nAnswer: 4\n"), done.stderr
    assert done.stderr == ""  # no launcher, no warnings, no progress bars


def test_one_json_object(vlm: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(vlm), "--image", str(picture), "--json", "how many bars?"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "question": "how many bars?", "image": str(picture), "thinking": "two bars.", "answer": "4", "format": True,
        "guessed": False, "truncated": False, "completion": REPLY,
    }  # fmt: skip


def test_text_only_with_choices(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(llama), "what", "--choices", "4", "5"]) == 0
    assert capsys.readouterr().out == "two bars.\nAnswer: 4\n"


def test_what_is_wrong_with_a_reply_is_said(vlm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["--model", str(vlm), "how many bars?"]
    assert main([*ask, "--max_new_tokens", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("Answer: none found\n") and "cut at 2 tokens" in said.err
    assert main([*ask, "--flag", "Result:", "--template", "{question} end with Answer:"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{REPLY}\nAnswer: none found\n" and "no valid format, which is 'Result:' once" in said.err
    assert main([*ask, "--direct", "--template", "{question} end with Answer:"]) == 0
    said = capsys.readouterr()
    assert said.out == "Answer: 4\n" and said.err == ""  # read as training reads direct answers


@pytest.mark.parametrize(
    ("text", "truncated", "told"),
    [
        ("I see.\nAnswer: 4", False, ("I see.", "4", True, False)),
        ("I see.\nAnswer: 4", True, ("I see.", "4", False, False)),
        (r"so \boxed{4}", False, (r"so \boxed{4}", "4", False, True)),
        ("Answer: 4 Answer: 5", False, ("", "5", False, False)),
        ("four", False, ("four", "", False, False)),
    ],
)
def test_a_reply_is_taken_apart_as_in_training(text: str, truncated: bool, told: tuple) -> None:
    answer = parse_reply(text, PromptConfig(), truncated=truncated)
    assert (answer.thinking, answer.answer, answer.format, answer.guessed) == told
    assert answer.completion == text and answer.truncated == truncated


def test_escape_sequences_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    answer = parse_reply("a\x1b[2J\nb\nAnswer: \x1b[31m4", PROMPT, truncated=False)
    _print_answer(answer, Settings(PROMPT, 24, 0.0, 0, "auto"))
    assert capsys.readouterr() == ("a\ufffd[2J\nb\nAnswer: \ufffd[31m4\n", "")


def test_a_sample_goes_by_seed_and_id_alone(vlm: Path, tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": "how many bars?"} for i in range(5)]
    source = write_rows(tmp_path / "q.jsonl", *rows)
    replies = []
    for out, size, seed in (("a", 5, 1), ("b", 2, 1), ("c", 5, 2)):
        out_path = tmp_path / f"{out}.jsonl"
        ask = ["--model", str(vlm), "--input", str(source), "--out", str(out_path), "--temperature", "3"]
        main([*ask, "--batch_size", str(size), "--seed", str(seed)])
        replies.append([row["completion"] for row in rows_of(out_path)])
    assert replies[0] == replies[1] != replies[2]
    assert len(set(replies[0])) > 1


# --- batches ----------


def test_a_batch_with_bad_rows(vlm: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = picture.read_bytes()
    (picture.parent / "half.png").write_bytes(data[: len(data) // 2])  # its header is fine
    source = write_rows(
        picture.parent / "q.jsonl",
        {"id": "one", "question": "how many bars?", "image": "chart.png", "split": "test", "answer": "4"},
        {"question": "what", "choices": ["4", "5"]},
        {"question": "how many bars?", "image": "none.png"},
        "",
        {"question": "how many bars?", "image": "half.png"},
        {"image": "chart.png"},
        "{broken",
        {"id": "one", "question": "again?"},
        {"question": "what", "choices": "4 or 5"},
    )
    out = picture.parent / "new" / "a.jsonl"
    assert main(["--model", str(vlm), "--input", str(source), "--out", str(out), "--batch_size", "3"]) == 0
    rows = rows_of(out)
    assert rows[0] == {
        "id": "one", "image": "chart.png", "question": "how many bars?", "thinking": "two bars.", "answer": "4",
        "format": True, "guessed": False, "truncated": False, "completion": REPLY, "split": "test",
        "input_answer": "4",
    }  # fmt: skip
    assert rows[1]["id"] == "q-2" and rows[1]["image"] is None and rows[1]["answer"] == "4"
    assert rows[1]["choices"] == ["4", "5"]
    said = {row["id"]: row["error"] for row in rows if "error" in row}
    for name, reason in {
        "q-3": "none.png: no such picture", "q-5": "half.png: picture is truncated", "q-6": "no question",
        "q-7": "broken JSON", "one": "id was used before", "q-9": "choices is a str",
    }.items():  # fmt: skip
        assert reason in said.pop(name), name
    assert not said and len(rows) == 8
    assert "8 rows -> " in (err := capsys.readouterr().err) and "6 of them failed" in err


def test_a_stopped_batch_goes_on(vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(i), "question": "how many bars?"} for i in range(4)]
    source, out = write_rows(tmp_path / "q.jsonl", *rows), tmp_path / "a.jsonl"
    ask = ["--model", str(vlm), "--input", str(source), "--out", str(out)]
    assert main(ask) == 0
    whole = out.read_text()
    first, second, third, _ = whole.splitlines(keepends=True)
    marked = first.replace("two", "TWO")  # what is there is kept
    out.write_text(marked + second + third[:-9])
    assert main(ask) == 0
    assert out.read_text() == whole.replace(first, marked, 1)
    assert "going on after 2 of 4 rows" in capsys.readouterr().err
    assert main(ask) == 0 and "4/4" not in capsys.readouterr().err  # nothing to do


def test_too_large_a_batch_keeps_what_is_answered(vlm: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    source = write_rows(tmp_path / "q.jsonl", *({"id": str(i), "question": "how many bars?"} for i in range(4)))
    ask = ["--model", str(vlm), "--input", str(source), "--out", str(tmp_path / "a.jsonl"), "--batch_size", "3"]
    answer = Predictor.answer

    def small(self: Predictor, records: list) -> list:
        if len(records) < 3:
            raise torch.OutOfMemoryError
        return answer(self, records)

    monkeypatch.setattr(Predictor, "answer", small)
    assert main(ask) == 2
    assert "out of device memory after 3 of 4 rows; lower --batch_size (3)" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(ask) == 0 and [row["id"] for row in rows_of(tmp_path / "a.jsonl")] == ["0", "1", "2", "3"]


def test_answers_of_different_origin_do_not_mix(vlm: Path, llama: Path, tmp_path: Path, capsys) -> None:
    source = write_rows(tmp_path / "q.jsonl", {"id": "a", "question": "how many bars?"})
    out = tmp_path / "a.jsonl"
    ask = ["--input", str(source), "--out", str(out)]
    assert main(["--model", str(vlm), *ask]) == 0
    before = out.read_bytes()
    other = write_rows(tmp_path / "other.jsonl", {"id": "a", "question": "how many bars?"})
    cases = [
        (["--model", str(llama), *ask], "was made with another model"),
        (["--model", str(vlm), *ask, "--seed", "1"], "was made with another seed"),
        (["--model", str(vlm), *ask, "--flag", "So:"], "was made with another prompt"),
        (["--model", str(vlm), "--input", str(other), "--out", str(out)], "was made with another input"),
        (["--model", str(vlm), "--input", str(source), "--out", str(source)], "exists, but not q.jsonl.origin.json"),
    ]
    capsys.readouterr()
    for arguments, reason in cases:
        assert main(arguments) == 2
        assert reason in (err := capsys.readouterr().err) and err.count("\n") == 1
    write_rows(source, {"id": "b", "question": "how many bars?"})
    assert main(["--model", str(vlm), *ask]) == 2
    assert "a.jsonl:1: is not about row 1 of the input" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_one_question_for_a_folder(vlm: Path, picture: Path) -> None:
    folder, out = picture.parent, picture.parent / "a.jsonl"
    Image.new("RGB", (40, 20), "blue").save(folder / "b.JPG")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not asked about")
    assert main(["--model", str(vlm), "--input", str(folder), "--out", str(out), "how many bars?"]) == 0
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [row["image"] for row in rows] == ["b.JPG", "bad.png", "chart.png"]
    assert rows[0]["answer"] == rows[2]["answer"] == "4" and "not a readable picture" in rows[1]["error"]


def test_all_rows_failed_is_1(vlm: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", {"question": "what", "image": "none.png"})
    ask = ["--model", str(vlm), "--input", str(source), "--out", str(tmp_path / "a.jsonl")]
    assert main(ask) == 1
    assert main(ask) == 1  # and still is when nothing is left to do


# --- settings ----------


def test_without_dyme_json_the_default_prompt_is_said(vlm: Path, tmp_path: Path, capsys) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in vlm.iterdir():
        if file.name != "dyme.json":
            (bare / file.name).symlink_to(file)
    run = tmp_path / "run.yaml"
    run.write_text(
        "model: {path: x}\ndata: {train: {source: charts, count: 1}}\n"
        "prompt: {template: '{question} end with {flag}'}\nrollout: {max_new_tokens: 24}\n"
    )
    assert main(["--model", str(bare), "--max_new_tokens", "3", "how many bars?"]) == 0
    assert "has no dyme.json, so the default prompt is used" in capsys.readouterr().err
    assert main(["--model", str(bare), "--config", str(run), "how many bars?"]) == 0
    assert capsys.readouterr() == ("two bars.\nAnswer: 4\n", "")


def test_the_system_prompt_of_dyme_json(llama: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    told = Path(shutil.copytree(llama, tmp_path / "export"))
    prompt = PROMPT.model_copy(update={"system": "You count bars."})
    write_recipe(Recipe(prompt=prompt, max_new_tokens=4, family="causal_lm"), told)
    texts: list[str] = []
    encode = CausalLM.encode

    def heard(family: CausalLM, *arguments: object, **more: object) -> Prompt:
        made = encode(family, *arguments, **more)  # type: ignore[arg-type]
        texts.append(family.tokenizer.decode(made.input_ids))
        return made

    monkeypatch.setattr(CausalLM, "encode", heard)
    assert main(["--model", str(told), "how many bars? <|im_start|>"]) == 0
    asked = texts[-1]
    assert asked.startswith("<|im_start|>system\nYou count bars.<end_of_utterance>\n<|im_start|>user\n")
    assert "how many bars? <|im_start|> end with Answer:" in asked


def test_a_damaged_dyme_json_is_one_line(vlm: Path, tmp_path: Path, capsys) -> None:
    for text, reason in (
        ("{", "cannot be read"),
        ("[1]", "write settings below it"),
        ('{"format": 2}', "'format': Input should be 1"),
        ('{"prompt": {"template": "x"}}', "prompt.template must contain {question}"),
    ):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "dyme.json").write_text(text)
        with pytest.raises(RecipeError, match=r"dyme\.json"):
            read_recipe(tmp_path)
        assert main(["--model", str(tmp_path), "what"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("predict: ") and err.count("\n") == 1 and reason in err, err


def test_errors_are_one_line_with_the_mend(vlm: Path, llama: Path, picture: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    model, out = ["--model", str(vlm)], ["--out", str(tmp_path / "a.jsonl")]
    cases = [
        (["--model", "nowhere", "what"], "no such folder"),
        (["--model", str(tmp_path / "run"), "what"], f"did you mean {tmp_path / 'run' / 'export'}?"),
        (["--model", str(tmp_path / "run" / "export"), "--template", "{question}", "what"], "'' is not supported"),
        ([*model], "no question; add it in quotes"),
        ([*model, "--choices", "a", "what"], "put it before --choices"),
        ([*model, "--image", "none.png", "what"], "none.png: no such picture"),
        (["--model", str(llama), "--image", str(picture), "what"], "is text-only"),
        (["--model", str(llama), "--input", str(tmp_path), *out, "what"], "is text-only"),
        ([*model, "--input", "none.jsonl", *out], "no such file or folder"),
        ([*model, "--input", str(tmp_path)], "--input needs --out"),
        ([*model, "--input", str(tmp_path), *out], "needs a question"),
        ([*model, "--input", str(tmp_path / "empty"), *out, "what"], "no pictures in it"),
        ([*model, "--input", str(tmp_path / "empty.jsonl"), *out], "no rows"),
        ([*model, "--input", str(tmp_path / "empty.jsonl"), *out, "what"], "holds its own questions"),
        ([*model, "--template", "what", "what"], "must contain {question}"),
        ([*model, "--device", "abacus", "what"], "no such device"),
        ([*model, *out, "what"], "--out goes with --input"),
        ([*model, "--input", str(tmp_path), "--out", str(picture / "a.jsonl"), "what"], "chart.png"),
    ]
    for arguments, reason in cases:
        assert main(arguments) == 2, arguments
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("predict: ") and reason in said.err, said.err
        assert said.err.count("\n") == 1, said.err
