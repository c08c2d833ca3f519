"""The real protocol: `transformers serve` with a tiny text checkpoint that has learnt to answer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import yaml

from dyme.supervision.judge import JudgeConfig, Question, open_judge
from dyme.supervision.judge.__main__ import main
from dyme.supervision.judge.endpoint import PING
from tests.helpers.judge_asking import RATING, question
from tests.helpers.judge_server import free_port
from tests.helpers.launching import environment

TAUGHT = {
    "Rate it.": "High.",
    "Rate the other.": 'Sure:\n```json\n{"rating": "low"}\n```',
    PING.user: '{"verdict": "ok"}',
}


def ask(user: str) -> Question:
    return question(user, system="", max_tokens=48)


def teach(folder: Path, out: Path) -> None:
    """Fits the tiny model to the replies of `TAUGHT`, so that what comes back is a real generation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for user, reply in TAUGHT.items():
        turns = [{"role": "system", "content": PING.system}] if user == PING.user else []
        turns.append({"role": "user", "content": user})
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        begin = tokenizer(prompt)["input_ids"]
        end = tokenizer(reply + tokenizer.eos_token)["input_ids"]
        rows.append((torch.tensor([begin + end]), torch.tensor([[-100] * len(begin) + end])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    assert loss.item() < 0.3, "the tiny judge did not learn its replies"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@pytest.fixture(scope="module")
def served(checkpoint: Callable[[str], Path], tmp_path_factory: Any) -> Iterator[tuple[str, str]]:
    """Address and model name of `transformers serve`."""
    folder = tmp_path_factory.mktemp("judge") / "tiny-judge"
    port = free_port()
    transformers = Path(sys.executable).parent / "transformers"
    command = [str(transformers), "serve", "--port", str(port), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1"}
    log = folder.parent / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment() | offline, stdout=out, stderr=subprocess.STDOUT)
    try:
        teach(checkpoint("llama"), folder)  # while it starts; it loads a model with the first question
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield url, str(folder)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_real_answers(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    endpoint = {"url": url, "model": model, "input_price": 1.0, "output_price": 1.0}
    judge = open_judge(JudgeConfig.model_validate({"endpoints": [endpoint], "timeout_s": 60}), tmp_path, say=print)
    answers = judge.ask([ask("Rate it."), ask("Rate the other.")])
    again = judge.ask([ask("Rate it.")])
    counts = judge.counts()
    judge.close()
    assert [answer.value for answer in answers] == [{"rating": "high"}, {"rating": "low"}]
    assert again[0].cached and counts.sent == 2 and counts.retries == 0
    assert counts.tokens_in > 20 and counts.tokens_out > 5
    assert counts.money == pytest.approx((counts.tokens_in + counts.tokens_out) / 1e6)


def test_an_answer_that_makes_no_sense(served: tuple[str, str]) -> None:
    url, model = served
    cfg = JudgeConfig.model_validate({"endpoints": [{"url": url, "model": model}], "timeout_s": 60})
    judge = open_judge(cfg, None, say=print)
    schema = {**RATING, "properties": {"rating": {"type": "string", "enum": ["excellent"]}}}
    assert judge.ask([question("Rate it.", system="", schema=schema, max_tokens=48)])[0].reason == "bad_answer"
    assert judge.counts().state == "closed"
    judge.close()


def test_ping(served: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    url, model = served
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"judge": {"endpoints": [{"url": url, "model": model}], "timeout_s": 60}}))
    assert main(["ping", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith("ok ")
