"""What a user's code changes of the process is put back."""

from __future__ import annotations

import os
import random
import threading
import warnings

import numpy as np
import pytest
import torch

from dyme.rewards.calls import UserRewards
from dyme.rewards.surroundings import PROCESS, SEEDS, THREAD, Surroundings, _handlers, _held, _same
from dyme.rewards.user import load_rewards
from dyme.settings.rewards import RewardConfig

HARM = {
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "grad mode": "torch.set_grad_enabled(False)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "anomaly": "torch.autograd.set_detect_anomaly(True)",
    "folder": "os.chdir('/')",
    "umask": "os.umask(0o077)",
    "seeds": "random.seed(1), np.random.seed(1), torch.manual_seed(1)",
    "warnings": "warnings.simplefilter('error')",
    "all warnings": "warnings.resetwarnings()",
    "locale": "locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
    "numpy errors": "np.seterr(all='raise')",
    "recursion": "sys.setrecursionlimit(77)",
    "logging": "logging.disable(logging.CRITICAL)",
    "alarm": "signal.alarm(1000)",
    "socket": "socket.setdefaulttimeout(0.001)",
    "gc": "gc.disable()",
}
IMPORTS = "import gc, locale, logging, os, random, signal, socket, sys, warnings\nimport numpy as np\nimport torch\n"


def state() -> list:
    return [*_held(PROCESS), *_held(THREAD), *_held(SEEDS)]


def same(before: list) -> bool:
    return all(_same(a, b) for a, b in zip(before, state(), strict=True))


@pytest.fixture(autouse=True)
def clean():
    before, handlers = Surroundings(), _handlers()
    yield
    before.restore()
    assert _handlers() == handlers


def loaded(tmp_path, code: str, **entry: object) -> UserRewards:
    file = tmp_path / "own.py"
    file.write_text(IMPORTS + code)
    config = RewardConfig.model_validate({"user": [{"function": f"{file}:f", **entry}]})
    return UserRewards(load_rewards(config.user))


@pytest.mark.parametrize("harm", HARM)
def test_a_call_leaves_the_process_as_it_was(tmp_path, harm):
    rewards = loaded(tmp_path, f"def f(completions):\n    {HARM[harm]}\n    return [1.0] * len(completions)\n")
    before = state()
    for _ in range(2):
        rewards.begin()
        outcome = rewards.start({"completions": ["a", "b"]}, list, 2).outcome([1.0])
        assert outcome.scores.values.tolist() == [[1.0], [1.0]], outcome.examples
        rewards.end()
        assert same(before)


@pytest.mark.parametrize("harm", HARM)
def test_loading_leaves_the_process_as_it_was(tmp_path, harm):
    before = state()
    loaded(tmp_path, f"{HARM[harm]}\ndef f(step): ...\n")
    assert same(before)


def test_signal_handlers_of_a_file_are_put_back(tmp_path):
    before = _handlers()
    loaded(tmp_path, "for n in (15, 10, 2, 1): signal.signal(n, signal.SIG_IGN)\ndef f(step): ...\n")
    assert _handlers() == before


def test_a_call_that_hangs_spoils_nothing_either(tmp_path):
    code = (
        "import time\ndef f(step):\n    torch.set_default_dtype(torch.float64)\n    os.chdir('/')\n    time.sleep(1)\n"
    )
    rewards, before = loaded(tmp_path, code, timeout_s=0.2), state()
    rewards.begin()
    assert rewards.start({"step": 0}, list, 1).outcome([1.0]).errors
    rewards.end()
    assert same(before)
    rewards.begin()  # while it still runs
    rewards.end()
    assert same(before)
    with rewards._ended:  # its end puts the state back too, which must not fall into another test
        assert rewards._ended.wait_for(lambda: not rewards._workers[0][0].call, 10)


def test_numbers_drawn_by_the_run_are_the_same_with_and_without_a_reward(tmp_path):
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    rewards = loaded(tmp_path, "def f(completions):\n    return [random.random() + float(torch.rand(()))]\n")
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    wanted = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    rewards.begin()
    rewards.start({"completions": ["a"]}, list, 1).outcome([1.0])
    rewards.end()
    assert draws() == wanted
    assert threading.current_thread() is threading.main_thread() and os.getcwd() and warnings.filters


@pytest.mark.parametrize(("code", "harmless"), [("pass", True), (HARM["default dtype"], False)])
def test_functions_that_change_the_process_do_not_run_beside_the_decoding(tmp_path, code, harmless):
    rewards = loaded(tmp_path, f"def f(completions):\n    {code}\n    return [1.0]\n", per="group")
    assert not rewards.harmless
    for _ in range(2):
        rewards.begin()
        rewards.start({"completions": ["a"]}, list, 1).outcome([1.0])
        rewards.end()
        assert rewards.harmless is harmless
