"""metrics.py: strict JSON lines, cutting back for a resume, pictures, TensorBoard, the silent rank, the summary."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dyme.metrics.logger import MetricsLogger, Sample, SilentLogger, open_metrics, summarize
from dyme.text.json_lines import plain, read_jsonl


def quiet_logger(run_dir: Path) -> MetricsLogger:
    return MetricsLogger(run_dir, tensorboard=False)


def a_sample(step: int, record_id: str = "r1", **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "step": step, "id": record_id, "kind": "count", "question": "How many bars?", "gold": "3",
        "completion": "I see three.\nAnswer: 3", "thinking": "I see three.",
        "answer": "3", "correct": True, "format": 1,
    }  # fmt: skip
    return Sample(**(fields | changes))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.23456789, 1.23457),
        (123456789.0, 123457000.0),
        (-1.23456789e-9, -1.23457e-9),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (True, True),
        (7, 7),
        ("text", "text"),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (torch.tensor(0.25), 0.25),
        ([1.0, math.nan], [1.0, None]),
        ({"a": (0.12345678,)}, {"a": [0.123457]}),
    ],
)
def test_plain_is_strict_json(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_each_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    logger = quiet_logger(tmp_path / "new" / "run")
    logger.log(1, {"loss": math.nan, "lr": 1.23456789e-5})
    logger.log_eval(1, {"eval/accuracy": 0.5})
    text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert text.splitlines() == [
        '{"step": 1, "loss": null, "lr": 1.23457e-05}',
        '{"step": 1, "eval": true, "eval/accuracy": 0.5}',
    ]


def test_truncate_cuts_both_files_and_a_half_written_line(tmp_path: Path) -> None:
    logger = quiet_logger(tmp_path)
    for step in range(1, 6):
        logger.log(step, {"loss": float(step)})
        logger.log_samples([a_sample(step)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    again = quiet_logger(tmp_path)
    again.truncate(3)
    again.log(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_jsonl(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0),
    ]  # fmt: skip
    assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_truncate_keeps_lines_bit_for_bit_and_needs_no_file(tmp_path: Path) -> None:
    logger = quiet_logger(tmp_path)
    logger.truncate(10)
    logger.log(1, {"a": 1 / 3, "b": None, "n": 5, "text": "é <b>"})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    logger.truncate(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    logger.truncate(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is not JSON"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        read_jsonl(path)


def test_samples_keep_odd_text(tmp_path: Path) -> None:
    odd = 'a\u2028b\x0cc\nd "quoted" </script> \ud800'
    logger = quiet_logger(tmp_path)
    logger.log_samples([a_sample(1, completion=odd), a_sample(1, "r2")])
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert [row["id"] for row in rows] == ["r1", "r2"]
    assert rows[0]["completion"] == odd
    assert set(rows[0]) == set(Sample.__dataclass_fields__)


def test_pictures_are_saved_once_under_safe_distinct_names(tmp_path: Path) -> None:
    logger = quiet_logger(tmp_path)
    loads = []

    def load() -> Image.Image:
        loads.append(1)
        return Image.new("RGB", (4, 4), "red")

    names = [logger.save_image(record_id, load) for record_id in ("a/b", "a?b", "../../x", "a/b", "", "é" * 300)]
    assert len(set(names)) == 5 and len(loads) == 5 and names[0] == names[3]
    for name in names:
        assert Path(name).name == name and not name.startswith(".")
        assert Image.open(tmp_path / "samples" / name).size == (4, 4)
    assert len(list((tmp_path / "samples").iterdir())) == 5


def test_tensorboard_gets_the_numbers_and_forgets_cut_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = MetricsLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log(step, {"loss": step / 2, "note": "text", "nan": math.nan})
    logger.close()
    resumed = MetricsLogger(tmp_path)
    resumed.truncate(2)
    resumed.log(3, {"loss": 9.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_other_ranks_have_the_same_interface_and_write_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    silent = open_metrics(run_dir, rank=1)
    silent.truncate(3)
    silent.log(1, {"loss": 1.0})
    silent.log_eval(1, {})
    silent.log_samples([a_sample(1)])
    assert silent.save_image("a", lambda: pytest.fail("the picture was loaded")) == ""
    silent.close()
    assert not run_dir.exists()

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(SilentLogger) == public(MetricsLogger)
    assert isinstance(open_metrics(run_dir, rank=0, tensorboard=False), MetricsLogger)


def test_missing_wandb_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RuntimeError, match=r"pip install 'dyme\[wandb\]'"):
        MetricsLogger(tmp_path, wandb={"project": "p"})


def test_wandb_is_started_with_the_settings_and_gets_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class FakeRun:
        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            calls.append(("define", (name, step_metric)))

        def log(self, values: dict[str, Any]) -> None:
            calls.append(("log", values))

        def finish(self) -> None:
            calls.append(("finish", None))

    class FakeWandb:
        @staticmethod
        def init(**settings: Any) -> FakeRun:
            calls.append(("init", settings))
            return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    logger = MetricsLogger(tmp_path, tensorboard=False, wandb={"project": "p", "name": "n"})
    logger.log(2, {"loss": 0.5, "nan": math.nan})
    logger.close()
    assert calls[0] == ("init", {"dir": str(tmp_path), "project": "p", "name": "n"})
    assert calls[-2:] == [("log", {"step": 2, "loss": 0.5}), ("finish", None)]


def test_summary_of_a_run() -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "eval": True, "eval/accuracy": 0.0, "eval/format_rate": 0.1}]
    for step in range(1, 41):
        late = step > 36
        lines.append({
            "step": step, "time_s": step * 2.0, "accuracy": 0.9 if late else 0.1, "format_rate": 1.0,
            "mode/memorize_ratio": 0.25 if late else 1.0, "mode/explore_ratio": 0.5 if late else 0.0,
            "mode/skip_ratio": 0.25 if late else 0.0, "mode/joint_ratio": 0.0,
            "collapse/all_wrong": 0.0 if step > 20 else 1.0,
        })  # fmt: skip
    lines.append({"step": 40, "eval": True, "time_s": 83.0, "eval/accuracy": 0.8, "eval/format_rate": 0.95})
    summary = summarize(lines)
    assert summary["steps"] == 40 and summary["wall_s"] == 83.0
    assert summary["eval_accuracy_first"] == 0.0 and summary["eval_accuracy"] == 0.8 and summary["format_rate"] == 0.95
    assert summary["train_accuracy"] == pytest.approx(0.9) and summary["collapse_rate"] == pytest.approx(0.5)
    assert summary["mode_shares_first_tenth"] == {"explore": 0.0, "memorize": 1.0, "skip": 0.0, "joint": 0.0}
    assert summary["mode_shares_last_tenth"] == {"explore": 0.5, "memorize": 0.25, "skip": 0.25, "joint": 0.0}
    json.dumps(summary, allow_nan=False)


def test_summary_of_nothing_and_of_sft() -> None:
    assert summarize([])["steps"] == 0
    sft = summarize([{"step": 1, "time_s": 1.0, "loss": 2.0, "accuracy": None}])
    assert sft["train_accuracy"] is None and sft["eval_accuracy"] is None and sft["format_rate"] is None
    assert sft["collapse_rate"] is None
