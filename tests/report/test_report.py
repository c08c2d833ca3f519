"""The report of synthetic runs: the page's structure, escaping, honest samples, and runs with pieces missing."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from dyme.metrics.logger import MetricsLogger, Sample, summarize
from dyme.report import ReportError, load_runs, write_report
from dyme.report import figure as figure_module
from dyme.report.__main__ import main
from dyme.report.cards import Pair, choose, pair_samples
from dyme.report.runs import distinct_names
from dyme.text.json_lines import plain

COLORS = ("red", "green", "blue", "orange", "purple", "cyan", "magenta", "gray")
KINDS = ("count", "maximum", "sum", "value")


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def training_line(step: int, method: str, noise: random.Random, steps: int) -> dict[str, Any]:
    """One step as a small model's run logs it: DyME learns around a third of the way, GRPO never does."""
    groups, rows = 32, 8
    x = step / steps
    skill = 0.93 * sigmoid(11 * (x - 0.42)) if method == "dyme" else 0.0
    skills = [min(1.0, max(0.0, noise.gauss(skill, 0.22 * math.sqrt(skill * (1 - skill) + 1e-9) + 0.1 * skill)))
              for _ in range(groups)]  # fmt: skip
    right = [sum(noise.random() < s for _ in range(rows)) for s in skills]
    wrong_share = sum(n == 0 for n in right) / groups
    mastered = sum(n == rows for n in right) / groups
    mixed = 1 - wrong_share - mastered
    accuracy = sum(right) / groups / rows
    form = min(1.0, 0.99 * sigmoid(25 * (x - 0.08)) + noise.gauss(0, 0.01)) if method == "dyme" else 0.0
    thinking = (0.15 + 0.6 * sigmoid(9 * (x - 0.25)) if method == "dyme" else 0.08) + noise.gauss(0, 0.015)
    explore = mixed if method == "dyme" else 1.0
    seconds = {"rollout": 0.9 + 0.25 * x, "score": 0.02, "gather": 0.01, "refine": 0.01, "plan": 0.005,
               "update": 0.55 + 0.2 * explore, "refresh": 0.06}  # fmt: skip
    if method == "sft":
        del seconds["rollout"], seconds["score"], seconds["gather"]
    seconds = {part: value * noise.uniform(0.92, 1.12) for part, value in seconds.items()}
    length = 4 + 24 * form + noise.gauss(0, 0.6) if method == "dyme" else 3.2 + noise.gauss(0, 0.15)
    tokens = length * groups * rows
    total = sum(seconds.values())
    line: dict[str, Any] = {
        "step": step, "time_s": 1.75 * step, "epoch": step * groups / 4096, "lr": 1e-3 * min(1.0, step / 10),
        "loss": 2.5 * math.exp(-4 * x) + noise.gauss(0, 0.05), "grad_norm": abs(noise.gauss(0.8, 0.2)),
        "mode/joint_ratio": 0.0, "skipped_update": 0, "bad_rows": 0, "tokens_per_s": tokens / total,
        **{f"time/{part}": value for part, value in seconds.items()},
    }  # fmt: skip
    if method == "sft":
        return line | {"mode/explore_ratio": 0.0, "mode/memorize_ratio": 1.0, "mode/skip_ratio": 0.0}
    return line | {
        "mode/explore_ratio": explore,
        "mode/memorize_ratio": wrong_share if method == "dyme" else 0.0,
        "mode/skip_ratio": mastered if method == "dyme" else 0.0,
        "collapse/all_wrong": wrong_share, "collapse/all_right": mastered, "collapse/zero_std_accuracy": 1 - mixed,
        "collapse/zero_std_reward": max(0.0, 0.5 * wrong_share + noise.gauss(0, 0.03)) * 0.2 + 0.6 * mastered,
        "collapse/shaped_only": 0.9 * wrong_share,
        "reward/accuracy_mean": accuracy, "reward/thinking_mean": max(0.0, thinking), "reward/format_mean": form,
        "reward/total_mean": accuracy + thinking + form, "accuracy": accuracy, "format_rate": form,
        "rollout/length_mean": length, "rollout/tokens": tokens, "rollout/truncated": 0.01,
    }  # fmt: skip


def chart(path: Path, noise: random.Random) -> None:
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    for bar in range(4):
        draw.rectangle([2 + 7 * bar, 30 - noise.randrange(4, 28), 7 + 7 * bar, 30], fill=noise.choice(COLORS))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def samples_at(step: int, rate: float, seed: int, count: int = 24) -> list[Sample]:
    noise = random.Random(seed * 1000 + step)
    rows = []
    for index in range(count):
        correct, gold = noise.random() < rate, str(2 + index % 7)
        answer = gold if correct else str(1 + index % 5 + 4 * step)
        spoken = step > 0 and rate > 0
        thinking = f"The bars are red, blue and green. The tallest one reaches {answer}." if spoken else ""
        row = Sample(
            step=step, id=f"test-{index:03d}", kind=KINDS[index % 4], gold=gold,
            question=f"How tall is the {COLORS[index % 8]} bar?", thinking=thinking,
            completion=f"{thinking}\nAnswer: {answer}" if spoken else "seven",
            answer=answer if spoken else "", correct=correct, format=int(spoken), image=f"test-{index:03d}.png",
        )  # fmt: skip
        rows.append(row)
    return rows


def make_run(folder: Path, method: str = "dyme", steps: int = 160, finished: bool = True, seed: int = 0) -> Path:
    """A run folder as the trainer leaves it, with invented but plausible numbers."""
    noise = random.Random(seed)
    logger = MetricsLogger(folder, tensorboard=False)
    lines = []
    for step in range(steps + 1):
        if step:
            lines.append({**training_line(step, method, noise, steps)})
        if step % (steps // 8) == 0:
            top = 0.86 * sigmoid(12 * (step / steps - 0.42)) if method == "dyme" and step else 0.0
            seen = {"eval/accuracy": max(0.0, min(1.0, top + (noise.gauss(0, 0.015) if top else 0.0)))}
            seen["eval/format_rate"] = 0.99 * sigmoid(25 * (step / steps - 0.08)) if method == "dyme" and step else 0.0
            lines.append({"step": step, "eval": True, **seen, "eval/n": 256})
            if step in (0, steps):
                logger.log_samples(samples_at(step, seen["eval/accuracy"], seed))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(plain(line)) + "\n" for line in lines))
    for index in range(24):
        chart(folder / "samples" / f"test-{index:03d}.png", random.Random(index))
    (folder / "config.yaml").write_text(f"method: {method}\n")
    if finished:
        summary = summarize(lines) | {"method": method, "config": "quickstart", "versions": {"torch": "2.13.0"}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "DONE").touch()
    return folder


class Page(HTMLParser):
    """Tags and attributes of a page, whether every tag is closed, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, kind: str = "") -> int:
        return sum(name == tag and kind in ["", *(attrs.get("class") or "").split()] for name, attrs in self.tags)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse pictures: these tests read the page."""
    save = figure_module.save_figure
    monkeypatch.setattr(figure_module, "save_figure", lambda runs, path: save(runs, path, dpi=40))


def report(runs: list[Path], out: Path) -> Page:
    png, html = write_report(runs, out)
    assert (png, html) == (out / "report.png", out / "report.html") and png.exists()
    return Page(html.read_text(encoding="utf-8"))


def test_one_run_makes_one_self_contained_page(tmp_path: Path, quick: None) -> None:
    run = make_run(tmp_path / "quickstart")
    page = report([run], run)
    assert page.count("article", "card") == 12
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 1 + 12 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any({"href", "srcset", "onload", "onerror", "action"} & set(attrs) for _, attrs in page.tags)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    text = (run / "report.html").read_text()
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "before, 8" in page.text and "torch 2.13.0" in page.text and "has not finished" not in page.text
    assert str(tmp_path) not in text


def test_the_figure_is_a_double_column_at_300_dpi(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", steps=40), make_run(tmp_path / "b", "grpo", steps=40, seed=1)]
    png, _ = write_report(runs, tmp_path / "out")
    with Image.open(png) as image:
        assert image.width == 2160 and image.height > image.width
        # The first run is blue and the second vermillion wherever they are drawn.
        seen = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0xEE, 0x9C, 0x6B)} <= seen


def test_several_runs_are_told_apart(tmp_path: Path, quick: None) -> None:
    runs = [make_run(tmp_path / name, method, steps=40) for name, method in
            (("a/quick", "dyme"), ("b/quick", "grpo"), ("base", "sft"))]  # fmt: skip
    page = report(runs, tmp_path / "out")
    assert page.count("tr") == 1 + 3 and page.count("article", "card") == 3 * 6
    assert "a/quick (dyme)" in page.text and "b/quick (grpo)" in page.text and "base (sft)" in page.text
    assert "base: method sft makes no rollouts" in page.text


def test_panels_without_numbers_are_left_out_and_named(tmp_path: Path) -> None:
    titles, footnotes = {}, {}
    for method in ("dyme", "sft"):
        figure = figure_module.draw(load_runs([make_run(tmp_path / method, method, steps=16)]))
        titles[method] = {ax.get_title() for ax in figure.axes} | {ax.get_title() for ax in figure.axes}
        footnotes[method] = figure.subfigs[1].get_supxlabel()
    assert "Length of completions" in titles["dyme"] and "Loss" not in titles["dyme"] and footnotes["dyme"] == ""
    assert "Length of completions" not in titles["sft"] and {"Loss", "Throughput"} <= titles["sft"]
    assert footnotes["sft"].startswith("Not shown") and "Length of completions" in footnotes["sft"].replace("\n", " ")


def test_names_take_only_the_parents_they_need() -> None:
    paths = [Path("/r/a/x"), Path("/r/b/x"), Path("/r/y"), Path("/q/b/x")]
    assert distinct_names(paths) == ["a/x", "r/b/x", "y", "q/b/x"]


def test_text_of_the_model_cannot_leave_its_place(tmp_path: Path, quick: None) -> None:
    run = make_run(tmp_path / "<b>$x_1$ & run", steps=16)
    evil = '</div></article><script>alert(1)</script><img src=x onerror=alert(1)> & \x00\x1b[31m \ud800 "quoted"'
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row |= dict.fromkeys(("question", "gold", "thinking", "answer", "completion", "kind"), evil)
        row["image"] = "../../secret.png"
    chart(tmp_path / "secret.png", random.Random(0))
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report([run], tmp_path / "out")
    assert page.count("article", "card") == 12 and page.count("script") == 0 and page.count("img") == 1
    assert page.text.count("<script>alert(1)</script>") >= 12 * 4 and "picture missing" in page.text
    assert not any("onerror" in attrs for _, attrs in page.tags) and "\x1b" not in page.text


@pytest.mark.parametrize(
    ("right", "total", "shown_right"), [(18, 24, 9), (23, 24, 11), (1, 24, 1), (24, 24, 12), (0, 24, 0)]
)
def test_cards_show_right_and_wrong_in_proportion(right: int, total: int, shown_right: int) -> None:
    pairs = [Pair(None, {"id": f"{i:02d}", "kind": KINDS[i % 4], "correct": i < right}) for i in range(total)]
    shown = choose(pairs, 12)
    assert len(shown) == 12 and sum(pair.after["correct"] for pair in shown) == shown_right
    assert shown == choose(pairs, 12) and [p.after["id"] for p in shown] == sorted(p.after["id"] for p in shown)
    if right in (0, total):
        assert {pair.after["kind"] for pair in shown} == set(KINDS)


def test_before_and_after_are_the_same_record() -> None:
    rows = [{"step": step, "id": key} for step in (0, 5, 9) for key in ("b", "a")]
    assert pair_samples(rows) == [
        Pair({"step": 0, "id": "a"}, {"step": 9, "id": "a"}), Pair({"step": 0, "id": "b"}, {"step": 9, "id": "b"}),
    ]  # fmt: skip
    assert pair_samples(rows[:2]) == [Pair(None, rows[1]), Pair(None, rows[0])]
    assert pair_samples([]) == []


def test_a_running_job_without_summary_or_evaluation(tmp_path: Path, quick: None) -> None:
    run = tmp_path / "run"
    logger = MetricsLogger(run, tensorboard=False)
    logger.log(1, {**training_line(1, "dyme", random.Random(0), 10), "loss": math.nan, "tokens_per_s": math.inf})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    page = report([run], run)
    for said in ("has not finished", "no evaluation has been made yet", "no sample answers", "not evaluated yet"):
        assert said in page.text
    assert "1 steps" not in page.text and "1 step in" in page.text
    (run / "metrics.jsonl").write_text("")
    assert "no training step has been logged yet" in report([run], run).text


def test_one_evaluation_has_no_before(tmp_path: Path, quick: None) -> None:
    run = make_run(tmp_path / "run", finished=False)
    logger = MetricsLogger(run, tensorboard=False)
    logger.truncate(3)
    (run / "samples" / "test-000.png").unlink()
    page = report([run], run)
    assert "the only evaluation so far" in page.text and "before (step" not in page.text
    assert page.text.count("after (step 0)") == 12 and page.text.count("picture missing") == 1


def test_text_only_records_have_no_picture(tmp_path: Path, quick: None) -> None:
    run = make_run(tmp_path / "run", steps=16)
    samples = (run / "samples.jsonl").read_text()
    rows = [{**json.loads(line), "image": None} for line in samples.splitlines()]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report([run], run)
    assert page.count("img") == 1 and "picture missing" not in page.text


def test_evaluations_take_the_clock_of_the_step_before(tmp_path: Path) -> None:
    run = load_runs([make_run(tmp_path / "run", steps=16)])[0]
    series = run.series("eval/accuracy", evals=True)
    assert series.times.tolist() == [1.75 * step for step in series.steps.tolist()]


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=8)
    (tmp_path / "empty").mkdir()
    for folders, said in (
        ([tmp_path / "nowhere"], "is no folder"),
        ([run, tmp_path / "empty"], "it has no metrics.jsonl"),
        ([run, run], "given twice"),
    ):
        assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("report: ") and said in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    for name, text in (("summary.json", "[1"), ("config.yaml", "a: [1"), ("samples.jsonl", "{}\n")):
        broken = make_run(tmp_path / f"broken-{name}", steps=8)
        (broken / name).write_text(text)
        with pytest.raises(ReportError, match=str(broken.name)):
            load_runs([broken])


def test_the_command_prints_what_it_wrote(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=8)
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "report.png"), str(run / "report.html")]


def test_rewards_of_the_user_get_a_panel_and_failures_a_note(tmp_path):
    folder = make_run(tmp_path / "run", steps=16)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if not row.get("eval"):
            row |= {"reward/user/short-one_mean": -0.5, "reward/user/short-one_weight": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"reward_errors": {"short-one: ValueError": 12}}))
    [run] = load_runs([folder])
    assert "verifiers or rewards failed: short-one: ValueError (12 rows)" in run.notes
    counts = {
        "judge/sent": 5.0,
        "judge/cached": 2.0,
        "judge/failed": 1.0,
        "judge/tokens_in": 500.0,
        "judge/tokens_out": 50.0,
        "judge/money": 0.125,
        "facts/degraded": 2.0,
        "check/degraded": 8.0,
        "refine/degraded": 3.0,
    }
    (folder / "summary.json").write_text(json.dumps({"supervision": counts}))
    note = "judge: 5 questions sent, 2 answered from the cache, 1 without an answer; 500 tokens in, 50 out, money 0.125"
    assert load_runs([folder])[0].notes[0] == note
    told = "2 groups went by the facts of rules, 8 rows were checked by words alone, 3 demonstrations were not refined"
    assert told in load_runs([folder])[0].notes[1]
    titles = [ax.get_title() for ax in figure_module.draw([run]).findobj(Axes)]
    assert "Your reward: short-one" in titles


def test_one_run_shows_the_shares_of_its_time(tmp_path: Path) -> None:
    runs = [load_runs([make_run(tmp_path / name, steps=8)])[0] for name in ("a", "b")]
    labels = []
    for shown in (runs[:1], runs):
        [ax] = [
            ax for ax in figure_module.draw(shown).findobj(Axes) if ax.get_title() == "Where the time of a step goes"
        ]
        labels.append([text.get_text() for text in ax.get_legend().get_texts()])
    assert labels[1] == list(figure_module.TIME_PARTS)
    assert [label.rsplit(" ", 2)[0] for label in labels[0]] == labels[1]
    assert sum(int(label.split()[-2]) for label in labels[0]) == pytest.approx(100, abs=3)
