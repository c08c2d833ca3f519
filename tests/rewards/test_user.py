"""Rewards of the user's own: loading, calling, every kind of failure, weights, and one run in which they fail."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dyme.config import dump_config, load_config
from dyme.data.errors import ImageError
from dyme.data.record import LazyImage, Record
from dyme.rewards.calls import AT_ONCE, MAX_HANGING, UserRewards
from dyme.rewards.compose import UserScores, check, compose
from dyme.rewards.user import load_rewards, pictures, reward_columns
from dyme.settings.errors import ConfigError
from dyme.settings.rewards import RewardConfig
from dyme.settings.weight_schedule import WeightSchedule
from dyme.supervision.lexical import thinking_score
from tests.helpers.launching import ROOT, environment, launch
from tests.helpers.runs import lines, write_config

RECORDS = [
    Record(id="a", question="red?", answers=("7", "seven"), hint="The red bar shows 7.", kind="value"),
    Record(id="b", question="which?", answers=("cat",), choices=("cat", "dog"), facts="a cat"),
]
TEXTS = ["The red bar shows 7. Answer: 7", "no idea"]
COLUMNS = reward_columns(
    ["P red?", "P which?"],
    TEXTS,
    RECORDS,
    completion_ids=[(1, 2, 3), (4,)],
    truncated=[False, True],
    flag="Answer:",
    step=5,
    max_steps=9,
)


@pytest.fixture
def written(tmp_path):
    """Writes a file of functions and loads those that are named."""

    def write(code: str, *names: str, timeout_s: float = 5.0) -> UserRewards:
        path = tmp_path / "own.py"
        path.write_text(code)
        entries = [{"function": f"{path}:{name}", "timeout_s": timeout_s} for name in names]
        return UserRewards(load_rewards(RewardConfig.model_validate({"user": entries}).user))

    return write


def call(rewards: UserRewards, weights: list[float] | None = None):
    weights = weights or [1.0] * len(rewards.titles)
    return rewards.start(COLUMNS, lambda: pictures(RECORDS), len(RECORDS)).outcome(weights)


# --- what functions get and give ------------------------------------------------------------------


def test_values_and_none_of_sync_async_and_callable_objects(written):
    code = """
import asyncio
import numpy as np
def plain(prompts, completions, **columns): return [1, None]
async def later(completions, **columns):
    await asyncio.sleep(0.01)
    return (0.5, -2.0)
def array(completions): return np.array([True, False])
class Judge:
    def __call__(self, completions, **columns): return [3.0, 4.0]
judge = Judge()
"""
    got = call(written(code, "plain", "later", "array", "judge"))
    assert got.errors == {} and not got.scores.failed.any()
    np.testing.assert_equal(got.scores.values, [[1, 0.5, 1, 3], [math.nan, -2, 0, 4]])


def test_the_columns_that_are_given(written):
    code = """
import json
def everything(prompts, completions, **columns):
    state = columns.pop("trainer_state")
    columns["state"] = [state.global_step, state.max_steps]
    seen.append({"prompts": prompts, "completions": completions} | columns)
    return [0, 0]
def few(kind, step, *, hint="none"):
    seen.append([kind, step, hint])
    return [0, 0]
def changes(completions, answers):
    completions.clear()
    answers[0].append("8")
    return [0, 0]
seen = []
"""
    everything, few = written(code, "everything"), written(code, "few")
    assert call(everything).errors == {} and call(few).errors == {}
    assert call(written(code, "changes")).errors == {}
    [given] = everything.rewards[0].function.__globals__["seen"]
    assert given == {
        "prompts": ["P red?", "P which?"],
        "completions": TEXTS,
        "completion_ids": [[1, 2, 3], [4]],
        "truncated": [False, True],
        "thinking": ["The red bar shows 7.", "no idea"],
        "extracted_answer": ["7", None],
        "id": ["a", "b"],
        "question": ["red?", "which?"],
        "answer": ["7", "cat"],
        "answers": [["7", "seven"], ["cat"]],
        "choices": [[], ["cat", "dog"]],
        "hint": ["The red bar shows 7.", None],
        "facts": [None, "a cat"],
        "kind": ["value", ""],
        "step": 5,
        "state": [5, 9],
    }
    assert few.rewards[0].function.__globals__["seen"] == [[["value", ""], 5, ["The red bar shows 7.", None]]]
    assert COLUMNS["completions"] == TEXTS and COLUMNS["answers"][0] == ["7", "seven"]  # nobody changes them for others


def test_pictures_are_decoded_for_functions_that_name_them(written):
    decoded = []

    def draw() -> Image.Image:
        decoded.append(threading.current_thread().name)
        return Image.new("RGB", (4, 2))

    shared = LazyImage(draw=draw)
    records = [
        Record("a", "?", ("1",), images=(shared,)),
        Record("b", "?", ("1",)),
        Record("c", "?", ("1",), images=(shared,)),
    ]
    code = """
def blind(completions, **columns): return [float("image" in columns)] * len(completions)
def sees(image): return [None if each is None else each.width for each in image]
"""
    given = COLUMNS | {"completions": ["x"] * 3}
    got = written(code, "blind").start(given, lambda: pictures(records), 3).outcome([1.0])
    assert got.scores.values.tolist() == [[0.0]] * 3
    assert decoded == []
    got = written(code, "sees").start(given, lambda: pictures(records), 3).outcome([1.0])
    np.testing.assert_equal(got.scores.values, [[4], [math.nan], [4]])
    assert decoded == ["reward sees"]  # once, and within the time of the call

    def broken() -> list:
        raise ImageError("3.png: truncated")

    lost = written(code, "sees").start(given, broken, 3).outcome([1.0])
    assert lost.errors == {"sees: ImageError": 3} and lost.scores.failed.all()


def test_nobody_is_called_without_completions(written):
    rewards = written("def f(completions): raise ValueError", "f")
    got = rewards.start({}, list, 0).outcome([1.0])
    assert got.scores.values.shape == (0, 1) and got.errors == {}


# --- failures -------------------------------------------------------------------------------------

FAILURES = """
import asyncio, sys
def raises(completions): return [int(text) for text in completions]
async def raises_later(completions):
    await asyncio.sleep(0)
    raise KeyError("no score")
def exits(completions): sys.exit(3)
def too_slow_itself(completions): raise TimeoutError("the judge did not answer")
def short(completions): return [1.0]
def endless(completions):
    while True: yield 1.0
def nothing(completions): pass
def text(completions): return "12"
def table(completions): return {0: 1.0, 1: 2.0}
def nan(completions): return [float("nan"), 2.0]
def infinite(completions): return [1.0, float("-inf")]
def huge(completions): return [1.0, 10 ** 400]
def words(completions): return ["1.0", 1.0]
def objects(completions): return [1.0, [1.0]]
"""


@pytest.mark.parametrize(
    ("name", "kind", "failed", "example"),
    [
        ("raises", "ValueError", [1, 1], "invalid literal for int() with base 10"),
        ("raises", "ValueError", [1, 1], "(line 3)"),
        ("raises_later", "KeyError", [1, 1], "'no score' (line 6)"),
        ("exits", "SystemExit", [1, 1], "3"),
        ("too_slow_itself", "TimeoutError", [1, 1], "the judge did not answer"),
        ("short", "wrong_length", [1, 1], "returned 1 values for 2 completions"),
        ("endless", "wrong_length", [1, 1], "returned more than 2 values for 2 completions"),
        ("nothing", "not_a_list", [1, 1], "returned a NoneType"),
        ("text", "not_a_list", [1, 1], "returned a str"),
        ("table", "not_a_list", [1, 1], "returned a dict"),
        ("nan", "nan", [1, 0], "returned nan for a completion"),
        ("infinite", "out_of_range", [0, 1], "returned -inf"),
        ("huge", "not_a_number", [0, 1], "returned 1000"),
        ("words", "not_a_number", [1, 0], "returned '1.0'"),
        ("objects", "not_a_number", [0, 1], "returned [1.0]"),
    ],
)
def test_failures_are_counted_by_kind(written, name, kind, failed, example):
    got = call(written(FAILURES, name))
    assert got.scores.failed[:, 0].tolist() == [bool(each) for each in failed]
    assert np.isnan(got.scores.values[:, 0]).tolist() == got.scores.failed[:, 0].tolist()
    assert got.errors == {f"{name}: {kind}": sum(failed)}
    assert example in got.examples[f"{name}: {kind}"]


def test_one_that_fails_does_not_disturb_the_others(written):
    code = FAILURES + "def good(completions): return [1, 2]\n"
    got = call(written(code, "raises", "good", "nan"))
    np.testing.assert_equal(got.scores.values, [[math.nan, 1, math.nan], [math.nan, 2, 2]])
    assert got.errors == {"raises: ValueError": 2, "nan: nan": 1}


SLOW = """
import asyncio, threading, time
gate = threading.Event()
cancelled = []
def hangs(completions):
    gate.wait(20)
    return [1, 1]
async def sleeps(completions):
    try: await asyncio.sleep(20)
    except asyncio.CancelledError:
        cancelled.append(1)
        raise
def nap(completions):
    time.sleep(0.8)
    return [1, 1]
async def doze(completions):
    await asyncio.sleep(0.8)
    return [1, 1]
async def doze_too(completions):
    time.sleep(0.8)  # keeps its event loop to itself
    return [1, 1]
"""


def test_functions_run_at_the_same_time(written):
    rewards = written(SLOW, "doze", "nap", "doze_too")
    begin = time.monotonic()
    assert call(rewards).scores.values.tolist() == [[1, 1, 1]] * 2
    assert time.monotonic() - begin < 2.0  # 2.4 s one after the other


def test_calls_of_a_function_run_at_the_same_time_but_not_all(written):
    rewards = written(
        "import threading, time\n"
        "lock, now, most = threading.Lock(), 0, 0\n"
        "def nap(completions):\n"
        "    global now, most\n"
        "    with lock:\n"
        "        now += 1\n"
        "        most = max(most, now)\n"
        "    time.sleep(0.1)\n"
        "    with lock:\n"
        "        now -= 1\n"
        "    return [1] * len(completions)\n",
        "nap",
    )
    calls = [rewards.start(COLUMNS, list, 2) for _ in range(3 * AT_ONCE)]
    assert all(call.outcome([1.0]).scores.values.tolist() == [[1], [1]] for call in calls)
    assert rewards.rewards[0].function.__globals__["most"] == AT_ONCE


def test_calls_that_hang_leave_room_for_others(written):
    rewards = written(SLOW, "hangs", timeout_s=0.1)
    calls = [rewards.start(COLUMNS, list, 2) for _ in range(MAX_HANGING)]
    assert [call.outcome([1.0]).errors for call in calls] == [{"hangs: time_out": 2}] * MAX_HANGING
    assert rewards.start(COLUMNS, list, 2).outcome([1.0]).errors == {"hangs: busy": 2}
    rewards.rewards[0].function.__globals__["gate"].set()


def test_time_outs_and_what_hangs_behind_them(written):
    rewards = written(SLOW, "hangs", "sleeps", timeout_s=0.1)
    space = rewards.rewards[0].function.__globals__
    begin = time.monotonic()
    for _ in range(MAX_HANGING):
        got = call(rewards)
        assert got.errors == {"hangs: time_out": 2, "sleeps: time_out": 2} and got.scores.failed.all()
        assert got.examples["hangs: time_out"] == "took longer than 0.1 s"
    assert call(rewards).errors == {"hangs: busy": 2, "sleeps: time_out": 2}  # coroutines can be cancelled
    assert time.monotonic() - begin < 3
    deadline = time.monotonic() + 5
    while len(space["cancelled"]) <= MAX_HANGING and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(space["cancelled"]) == MAX_HANGING + 1
    space["gate"].set()
    while (again := call(rewards)).errors.get("hangs: busy") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert again.errors == {"sleeps: time_out": 2} and again.scores.values[:, 0].tolist() == [1, 1]


def test_an_async_function_keeps_its_event_loop(written):
    code = """
import asyncio
loops = set()
async def f(completions):
    loops.add(id(asyncio.get_running_loop()))
    return [len(loops)] * 2
def g(completions): return asyncio.get_event_loop().run_until_complete(f(completions))
"""
    rewards = written(code, "f", "g")
    for _ in range(4):
        assert call(rewards).errors == {}
    assert len(rewards.rewards[0].function.__globals__["loops"]) == 2  # clients that are bound to a loop live on


def test_a_function_that_hangs_does_not_hold_the_process_at_its_end(tmp_path):
    (tmp_path / "own.py").write_text("import time\ndef hangs(completions): time.sleep(60)\n")
    program = f"""
from dyme.rewards.calls import UserRewards
from dyme.settings.rewards import UserReward
from dyme.rewards.user import load_rewards
own = UserRewards(load_rewards((UserReward(function={str(tmp_path / "own.py:hangs")!r}, timeout_s=0.1),)))
print(own.start({{"completions": ["x"]}}, list, 1).outcome([1.0]).errors)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0 and done.stdout == "{'hangs: time_out': 1}\n", done.stderr


# --- weights and composition ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (2, {0: 2, 999: 2}),
        ({"start": -0.5}, {0: -0.5, 7: -0.5}),
        ({"start": 1, "end": 0, "steps": 4}, {0: 1, 1: 0.75, 2: 0.5, 4: 0, 99: 0}),
        ({"start": 0, "end": 2, "steps": 4, "begin": 10}, {0: 0, 10: 0, 11: 0.5, 14: 2, 15: 2}),
        (
            {"start": 1, "end": 0, "steps": 4, "shape": "cosine"},
            {0: 1, 1: (1 + math.sqrt(0.5)) / 2, 2: 0.5, 3: (1 - math.sqrt(0.5)) / 2, 4: 0},
        ),
    ],
)
def test_weight_schedules(schedule, expected):
    weight = WeightSchedule.model_validate(schedule)
    assert {step: weight.at(step) for step in expected} == pytest.approx(expected)
    assert WeightSchedule.model_validate(weight.model_dump()) == weight


def composed(values, failed, own, **settings):
    config = RewardConfig.model_validate({"user": [{"function": "a.py:f"}], **settings})
    user = UserScores(np.array(values, dtype=float), np.array(failed, dtype=bool), tuple(own))
    checked = check(TEXTS, RECORDS, truncated=[False, False], config=config, flag="Answer:", checker=thinking_score)
    return compose(checked, config, user)


def test_rewards_add_up():
    got = composed([[0.5, -1], [math.nan, 2]], [[0, 0], [0, 0]], [2.0, -0.25])
    assert got.reward.tolist() == [3 + 1 + 0.25, -0.5]  # None counts 0
    assert got.scored.all() and got.errors == {}
    only = composed([[0.5], [3]], [[0], [0]], [1.0], weights={"format": 0, "thinking": 0, "accuracy": 0})
    assert only.reward.tolist() == [0.5, 3.0]
    strict = composed([[0.5], [3]], [[0], [0]], [1.0], require_format=True)
    assert strict.reward.tolist() == [3.5, 0.0]


@pytest.mark.parametrize("require_format", [False, True])
def test_failed_rows_are_unscored_and_keep_their_accuracy(require_format):
    got = composed([[math.nan], [math.nan]], [[1], [1]], [0.5], require_format=require_format)
    assert not got.scored.any() and np.isnan(got.reward).all()
    assert got.accuracy.tolist() == [1, 0] and got.correct.tolist() == [1, 0]


def test_a_failure_without_weight_costs_nothing():
    got = composed([[math.nan, 1], [1, math.nan]], [[1, 0], [0, 1]], [0.0, 1.0])
    assert got.scored.tolist() == [True, False]
    assert got.reward[0] == 4.0 and math.isnan(got.reward[1])


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ([{"function": "short.py"}], "must be written file.py:function"),
        ([{"function": "a.py:f"}, {"function": "b.py:f"}], "two rewards are called 'f'"),
        ([{"function": "a.py:f", "name": "a b"}], "name 'a b' must be of letters"),
        ([{"function": "a.py:verifier"}], "name 'verifier' must be"),
        ([{"function": "a.py:f", "weight": math.inf}], "finite"),
        ([{"function": "a.py:f", "weight": "much"}], "weight.start': Input should be a valid number"),
        ([{"function": "a.py:f", "weight": {"start": 1, "end": 0}}], "needs both end and steps"),
        ([{"function": "a.py:f", "weight": {"start": 1, "shape": "cosine"}}], "need end and steps"),
        ([{"function": "a.py:f", "weight": {"start": 1, "step": 3}}], "unknown key 'reward.user.0.weight.step'"),
        ([{"function": "a.py:f", "timeout_s": 601}], "less than or equal to 600"),
        ([{"funktion": "a.py:f"}], "nearest: 'reward.user.0.function'"),
        ([{"function": "a.py:f", "weight": 0}], "every reward weight is 0"),
        ([], "every reward weight is 0"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, user, message):
    weights = {"format": 0, "thinking": 0, "accuracy": 0}
    path = write_config(tmp_path, reward={"weights": weights, "user": user})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_configuration_survives_its_own_text(tmp_path):
    user = [
        {"function": "a.py:f", "weight": {"start": 1.0, "end": 0.0, "steps": 3, "begin": 2}},
        {"function": "a.py:g", "weight": -1, "name": "penalty"},
    ]
    cfg = load_config(write_config(tmp_path, reward={"user": user}))
    assert [(r.title, r.weight.at(3)) for r in cfg.reward.user] == [("f", pytest.approx(2 / 3)), ("penalty", -1)]
    text = dump_config(cfg)
    assert yaml.safe_load(text)["reward"]["user"][1]["weight"] == -1.0
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(tmp_path / "again.yaml") == cfg


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        (None, "f", "no such file"),
        ("def f(completions) return 1", "f", "does not load: SyntaxError: expected ':' (line 1)"),
        ("import os\nimport no_such_module_here\n", "f", "No module named 'no_such_module_here' (line 2)"),
        ("raise SystemExit('not today')", "f", "does not load: SystemExit: not today (line 1)"),
        ("def short_enough(completions): ...", "short_enuff", "no function 'short_enuff'; nearest: 'short_enough'"),
        ("x = 1", "f", "no function 'f'; the file defines no function"),
        ("f = 1", "f", "'f' is a int, not a function"),
        ("def f(completion): ...", "f", "takes 'completion' (nearest: 'completions'), which is not given by name"),
        ("def f(prompts, log_metric): ...", "f", "takes 'log_metric', which is not given by name; allowed: answer,"),
        ("def f(completions, /): ...", "f", "takes 'completions', which is not given by name"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, code, function, message):
    path = tmp_path / "own.py"
    if code is not None:
        path.write_text(code)
    config = RewardConfig.model_validate({"user": [{"function": f"{path}:{function}"}]})
    with pytest.raises(ConfigError) as caught:
        load_rewards(config.user)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("reward.user: ")


def test_paths_and_neighbours(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_own.py").write_text("VALUE = 2.5\n")
    (tmp_path / "own.py").write_text("import neighbour_of_own as n\ndef f(completions): return [n.VALUE] * 2\n")
    monkeypatch.setenv("MY_REWARDS", str(tmp_path))
    [loaded] = load_rewards(RewardConfig.model_validate({"user": [{"function": "${MY_REWARDS}/own.py:f"}]}).user)
    assert call(UserRewards([loaded])).scores.values.tolist() == [[2.5], [2.5]]
    monkeypatch.delenv("MY_REWARDS")
    with pytest.raises(ConfigError, match="environment variable MY_REWARDS is not set"):
        load_rewards(RewardConfig.model_validate({"user": [{"function": "${MY_REWARDS}/own.py:f"}]}).user)


# --- documentation and a run ----------------------------------------------------------------------


def test_the_example_of_the_documentation_runs(monkeypatch):
    page = (ROOT / "docs" / "rewards.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code == (ROOT / "configs" / "rewards" / "thinking.py").read_text()
    [block] = [b for b in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "user:" in b]
    config = RewardConfig.model_validate(yaml.safe_load(block)["reward"])
    monkeypatch.chdir(ROOT)
    rewards = UserRewards(load_rewards(config.user))
    columns = {"completions": ["word " * n for n in (60, 90, 200)], "thinking": ["a b c d", "red red red Red", ""]}
    got = rewards.start(COLUMNS | columns, list, 3).outcome([r.weight.at(200) for r in config.user])
    assert rewards.titles == ("repeats", "brevity") and got.scores.weights == pytest.approx((-0.5, 0.5))
    np.testing.assert_allclose(got.scores.values, [[0, 1], [0.75, 0.5], [math.nan, 0]])


FAILING = """
import os, time
RANK = int(os.environ["RANK"])
def loud(prompts, completions, step, **columns):
    if step in (1, 3) and RANK == 1:
        raise ValueError("no judge today")
    return [None if i % 2 else 0.25 for i in range(len(completions))]
async def fine(completion_ids, **columns):
    return [len(ids) / 10 for ids in completion_ids]
def slow(completions, step, **columns):
    if step == 2 and RANK == 0:
        time.sleep(600)
    return [1.0] * len(completions)
"""


@pytest.mark.dist
def test_a_run_survives_rewards_that_fail_on_one_rank(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(FAILING)
    user = [
        {"function": f"{own}:loud"},
        {"function": f"{own}:fine", "weight": {"start": 1.0, "end": 0.0, "steps": 2}, "per": "group"},
        {"function": f"{own}:slow", "weight": -1.0, "timeout_s": 1.5, "name": "slow-one"},
    ]
    config = write_config(tmp_path, reward={"user": user}, method="grpo", run__export=False)
    run = tmp_path / "run"
    done = launch("--config", config, f"run.dir={run}")
    said = [line for line in done.stderr.splitlines() if "reward failed" in line]
    assert len(said) == 2, done.stderr[-3000:]
    assert "loud: ValueError (ValueError: no judge today (line 6)): its rows stay unscored (said once)" in said[0]
    assert "slow-one: time_out (took longer than 1.5 s)" in said[1]
    assert (run / "DONE").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reward_errors"] == {"loud: ValueError": 6, "slow-one: time_out": 6}  # of both ranks, 6 rows each
    steps = [line for line in lines(run) if not line.get("eval")]
    assert [line["rollout/unscored"] for line in steps] == [0, 0.5, 0.5]
    assert [line["reward/user/loud_unscored"] for line in steps] == [0, 0.5, 0]
    assert [line["reward/user/slow-one_unscored"] for line in steps] == [0, 0, 0.5]
    assert [line["reward/user/fine_weight"] for line in steps] == [1, 0.5, 0]
    assert all(line["reward/user/loud_mean"] == 0.25 for line in steps)  # over the rows to which it applies
    assert [line["reward/user/slow-one_mean"] for line in steps] == [1, 1, 1]
    parts = ("format", "thinking", "accuracy")
    first = steps[0]
    total = sum(first[f"reward/{part}_mean"] for part in parts) + first["reward/user/fine_mean"] + 0.125 - 1
    assert first["reward/total_mean"] == pytest.approx(total, abs=1e-5)
    more = launch("--config", config, f"run.dir={run}", "train.max_steps=4")
    assert "resuming at step 3" in more.stderr and "reward failed" not in more.stderr  # this kind was said before
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reward_errors"] == {"loud: ValueError": 12, "slow-one: time_out": 6}
    last = lines(run)[-2]
    assert (last["step"], last["reward/user/fine_weight"], last["reward/user/loud_unscored"]) == (4, 0, 0.5)


@pytest.mark.dist
def test_a_missing_function_ends_the_run_before_data_and_model_load(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(FAILING)
    missing = {"train": {"source": "jsonl", "path": str(tmp_path / "none.jsonl")}}
    config = write_config(tmp_path, reward={"user": [{"function": f"{own}:fin"}]}, data=missing)
    failed = launch("--config", config, f"run.dir={tmp_path / 'run'}", ranks=1, check=False)
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.returncode != 0 and len(errors) == 1 and "nearest: 'fine'" in errors[0], failed.stderr[-2000:]
    assert "Traceback" not in failed.stderr and not Path(tmp_path / "run").exists()
