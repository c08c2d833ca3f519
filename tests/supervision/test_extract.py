"""Extraction: what it writes is a source, it goes on where it stopped, and a bad record costs itself."""

from __future__ import annotations

import json
import threading

import pytest
from PIL import Image

from dyme.data import ChartsSource, load_records
from dyme.data.jsonl import JsonlSource
from dyme.data.record import LazyImage, Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.__main__ import main
from dyme.supervision.extract import WINDOW, ExtractError, extract
from dyme.supervision.facts import FactStore
from dyme.supervision.judge.types import JudgeCounts
from dyme.supervision.judge_prompts import load_prompts
from dyme.supervision.templates import Candidate, TemplatePool, write_pool
from tests.helpers.fake_judge import FakeJudge
from tests.helpers.judge_server import JudgeServer, status

PROMPTS = load_prompts()
JUDGE = "judge: {endpoints: [{url: http://a, model: m}]}"
RULES, JUDGED = SupervisionConfig(), SupervisionConfig(facts="judge")


def run(records, out, judge=None, cfg=RULES, advance=lambda n: None):
    store = FactStore(cfg, PROMPTS, judge)
    try:
        return extract(records, out, store, advance)
    finally:
        store.close()


def rows(out):
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def plain(n=5, **more):
    return [Record(f"r{i}", f"what? {i}", ("4",), images=(drawn(),), **more) for i in range(n)]


def drawn():
    return LazyImage(draw=lambda: Image.new("RGB", (4, 4), "red"))


def test_the_file_is_a_source_with_the_same_records(tmp_path):
    out = tmp_path / "deep" / "facts.jsonl"
    records = list(load_records(ChartsSource(count=12, trace="low"), 0.0))
    report = run(records, out)
    assert report.written == {"record": 12} and not report.bad and report.before == 0
    again = load_records(JsonlSource(path=str(out)), 0.0)
    for before, after in zip(records, again, strict=True):
        assert (after.id, after.question, after.answers, after.hint, after.facts, after.kind) == (
            before.id,
            before.question,
            before.answers,
            before.hint,
            before.facts,
            before.kind,
        )
        assert after.image.load().tobytes() == before.image.load().tobytes()
    assert not (tmp_path / "deep" / "facts.jsonl.bad.jsonl").exists()


def test_votes_choices_and_files_of_pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures" / "a.png"
    Image.new("RGB", (4, 4), "blue").save(path)
    both = (LazyImage(path=path), LazyImage(path=path))
    record = Record("x/1", "what?", ("b", "a", "b"), choices=("a", "b"), hint="h", images=both)
    run([record, Record("x?1", "and?", ("a",))], tmp_path / "out" / "facts.jsonl")
    again = load_records(JsonlSource(path=str(tmp_path / "out" / "facts.jsonl")), 0.0)
    assert (again[0].answers, again[0].choices, again[0].facts) == (record.answers, record.choices, None)
    assert [image.path.resolve() for image in again[0].images] == [path, path]
    assert rows(tmp_path / "out" / "facts.jsonl")[0]["images"] == ["../pictures/a.png"] * 2


def test_it_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "facts.jsonl"
    judge = FakeJudge(lambda q: {"facts": [f"red of {q.record}"]})
    run(plain(3), out, judge, JUDGED)
    whole = out.read_bytes()
    out.write_bytes(whole[:-7])  # killed in the middle of a line
    steps = []
    report = run(plain(6), out, judge, JUDGED, steps.append)
    assert (report.before, report.written, sum(steps)) == (2, {"judge": 4}, 6)
    assert [row["facts"] for row in rows(out)] == [f"red of r{i}" for i in range(6)]
    assert [q.record for q in judge.questions] == ["r0", "r1", "r2", "r2", "r3", "r4", "r5"]


def test_bad_records_are_written_down_skipped_and_tried_again(tmp_path):
    out, bad = tmp_path / "facts.jsonl", tmp_path / "facts.jsonl.bad.jsonl"
    missing = Record("gone", "?", ("4",), images=(LazyImage(path=tmp_path / "gone.png"),))
    records = [*plain(2), missing, *plain(4)[2:]]
    judge = FakeJudge(lambda q: None if q.record == "r1" else {"facts": ["red 4"]})
    report = run(records, out, judge, JUDGED)
    assert [line.partition(":")[0] for line in report.bad] == ["r1", "gone"]
    assert [row["id"] for row in rows(out)] == ["r0", "r2", "r3"]
    assert [row["id"] for row in rows(bad)] == ["r1", "gone"]
    Image.new("RGB", (4, 4)).save(tmp_path / "gone.png")
    again = run(records, out, FakeJudge(lambda q: {"facts": ["red 4"]}), JUDGED)
    assert not again.bad and again.written == {"judge": 2} and not bad.exists()
    assert [row["id"] for row in rows(out)] == ["r0", "r2", "r3", "r1", "gone"]


def test_a_picture_that_cannot_be_drawn_costs_its_record_by_rules_too(tmp_path):
    from dyme.data.errors import ImageError

    def broken():
        raise ImageError("row 3: damaged")

    record = Record("r9", "?", ("4",), facts="red 4", images=(LazyImage(draw=broken),))
    report = run([record, *plain(1)], tmp_path / "facts.jsonl")
    assert report.bad == ["r9: row 3: damaged"] and report.written == {"none": 1}


def test_many_records_are_asked_about_at_once_but_not_all(tmp_path):
    judge = FakeJudge(lambda q: {"facts": ["red 4"]})
    seen = []

    def source():
        for record in plain(WINDOW + 20):
            seen.append(len(rows(tmp_path / "facts.jsonl")) if seen else 0)
            yield record

    run(source(), tmp_path / "facts.jsonl", judge, JUDGED)
    assert seen[WINDOW - 1] == 0 and seen[WINDOW] == 1 and seen[-1] == 20


def test_facts_of_another_version_are_not_mixed(tmp_path):
    out = tmp_path / "facts.jsonl"
    run(plain(2), out)
    text = out.read_text(encoding="utf-8").replace("rules-1", "rules-0")
    out.write_text(text, encoding="utf-8")
    with pytest.raises(ExtractError, match=r"facts\.jsonl: record r0 has facts of version rules-0, these are rules-1"):
        run(plain(3), out)
    with pytest.raises(ExtractError, match=r"facts of version rules-0, these are natural-facts-"):
        run(plain(3), out, FakeJudge(lambda q: {"facts": ["red 4"]}), JUDGED)
    out.write_text('{"id": "r0"}\n', encoding="utf-8")
    with pytest.raises(ExtractError, match=r"facts\.jsonl:1: not written by extract; give another --out"):
        run(plain(3), out)


def test_facts_by_rules_are_not_taken_for_the_judges(tmp_path):
    """Those of a record that has facts of its own are the same either way."""
    out, judge = tmp_path / "facts.jsonl", FakeJudge(lambda q: {"facts": ["red 4"]})
    run(plain(2, facts="red 4"), out)
    assert run(plain(2, facts="red 4"), out, judge, JUDGED).before == 2
    out.unlink()
    run(plain(2), out)
    with pytest.raises(ExtractError, match=r"record r0 has facts of version rules-1, these are natural-facts-"):
        run(plain(2), out, judge, JUDGED)


# --- the command line -----------------------------------------------------------------------------


def test_extract_by_rules(tmp_path, capsys):
    out = tmp_path / "facts.jsonl"
    assert main(["extract", "charts:count=3", "--out", str(out)]) == 0
    assert "0 records before, facts of 3 more (record 3), 0 skipped" in capsys.readouterr().out
    assert main(["extract", "charts:count=5", "--out", str(out)]) == 0
    assert "3 records before, facts of 2 more" in capsys.readouterr().out
    assert len(load_records(JsonlSource(path=str(out)), 0.0)) == 5


@pytest.fixture
def fake_client(monkeypatch):
    """A judge that needs no server."""
    judge = FakeJudge(lambda q: {"facts": ["red 4"]} if q.record != "r1" else None)
    judge.close = lambda: opened.append("closed")
    judge.counts = lambda: JudgeCounts()
    opened = []

    def open_judge(cfg, folder):
        opened.append((cfg.endpoints[0].url, folder))
        judge.cfg = cfg
        return judge

    monkeypatch.setattr("dyme.supervision.__main__.open_judge", open_judge)
    return opened


def test_extract_by_the_judge(tmp_path, capsys, fake_client):
    data, out, run_file = tmp_path / "data.jsonl", tmp_path / "facts.jsonl", tmp_path / "run.yaml"
    data.write_text("".join(f'{{"id": "r{i}", "question": "?", "answer": "4"}}\n' for i in range(3)))
    run_file.write_text(f"{JUDGE}\nsupervision: {{task: text}}\n")
    assert main(["extract", str(data), "--out", str(out), "--judge", str(run_file)]) == 1
    assert fake_client == [("http://a", tmp_path), "closed"]
    told = capsys.readouterr().out
    assert "skipped r1: the judge gave no facts" in told and "facts of 2 more (judge 2), 1 skipped" in told
    assert rows(out)[0]["facts_version"] == PROMPTS.version("facts", "text")


def test_a_slow_judge_is_waited_for_in_line(tmp_path, capsys):
    """All records of the window wait for a judge that takes one at a time; each call alone is well within its time."""
    data, out, run_file = tmp_path / "data.jsonl", tmp_path / "facts.jsonl", tmp_path / "run.yaml"
    data.write_text("".join(f'{{"id": "r{i}", "question": "what? {i}", "answer": "4"}}\n' for i in range(12)))
    with JudgeServer(lambda call: {"facts": ["red 4"]}, latency_ms=100) as server:
        told = f"judge: {{endpoints: [{{url: '{server.url}', model: m}}], concurrency: 1, timeout_s: 0.6}}"
        run_file.write_text(told)
        assert main(["extract", str(data), "--out", str(out), "--judge", str(run_file)]) == 0
    assert "facts of 12 more (judge 12), 0 skipped" in capsys.readouterr().out


def test_a_judge_that_goes_away_costs_the_records_under_way(tmp_path, capsys, monkeypatch):
    """And not all that follow; one that stays away ends the command in a line."""
    monkeypatch.setattr("dyme.supervision.extract.WINDOW", 4)
    data, out, run_file = tmp_path / "data.jsonl", tmp_path / "facts.jsonl", tmp_path / "run.yaml"
    data.write_text("".join(f'{{"id": "r{i}", "question": "what? {i}", "answer": "4"}}\n' for i in range(40)))

    def answer(call):
        if server.count() == 10:
            server.always(status(500))
            threading.Timer(0.5, server.always, (None,)).start()
        return {"facts": ["red 4"]}

    with JudgeServer(answer) as server:
        more = "retries: 0, concurrency: 2, breaker_failures: 2, breaker_pause_s: 0.1"
        run_file.write_text(f"judge: {{endpoints: [{{url: '{server.url}', model: m}}], {more}}}")
        command = ["extract", str(data), "--out", str(out), "--judge", str(run_file)]
        assert main(command) == 1
        assert 30 <= len(rows(out)) < 40
        assert main(command) == 0 and len(rows(out)) == 40
        out.unlink()
        (tmp_path / "judge-cache" / "answers.sqlite").unlink()
        monkeypatch.setattr("dyme.supervision.extract.MAX_OUTAGE_S", 0.3)
        server.clear()
        server.always(status(500))
        capsys.readouterr()
        assert main(command) == 2
        assert "the judge has not come back for 0.3 s: look at its servers" in capsys.readouterr().out


def test_ctrl_c_leaves_what_is_written(tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dyme.supervision.__main__.extract", stopped)
    assert main(["extract", "charts:count=3", "--out", str(tmp_path / "f")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run.yaml"),
        ("data: {}", "no section 'judge'"),
        ("judge: [", "run.yaml"),
        ("judge: {endpoint: 3}", "unknown key 'judge.endpoint'; nearest: 'judge.endpoints'"),
        ("judge: {concurrency: 4}", "judge.endpoints is empty; write"),
        (f"{JUDGE}\nsupervision: {{task: dogs}}", "'supervision.task': Input should be"),
        (f"{JUDGE}\nsupervision: {{prompts: nowhere}}", "no .yaml file there"),
    ],
)
def test_a_judge_that_cannot_be_opened(tmp_path, capsys, fake_client, text, message):
    run_file = tmp_path / "run.yaml"
    if text is not None:
        run_file.write_text(text)
    out = tmp_path / "facts.jsonl"
    assert main(["extract", "charts:count=3", "--out", str(out), "--judge", str(run_file)]) == 2
    assert message in capsys.readouterr().out and not out.exists()


def test_no_such_source(tmp_path, capsys):
    assert main(["extract", "nowhere.jsonl", "--out", str(tmp_path / "f")]) == 2
    assert "no such file or folder" in capsys.readouterr().out


def test_history_of_a_pool(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    some = [Candidate("sum", f"so {name} [each|{{name}}|, ]", i / 10, 7, "r3", "rules") for i, name in enumerate("ab")]
    write_pool(tmp_path, TemplatePool(size=4).propose(some))
    assert main(["templates", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "version 1" in told and "so b [each|{name}|, ]" in told and "best" in told and "r3" in told
    assert main(["templates", str(tmp_path / "nowhere")]) == 2
    assert "templates.json: no such file; name the folder of a run" in capsys.readouterr().out
