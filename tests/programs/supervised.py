"""A training run whose model says what a script says: supervised.py CONFIG RUN_DIR [PAUSE_MS].

Every group has right and wrong answers or only wrong ones, by its record and step, with different traces, so that
checker and refiner have something to do from the first step on. At the end every rank prints a digest of what must be
the same on all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from dataclasses import replace

import torch

from dyme import trainer
from dyme.config import load_config
from dyme.engine.train_engine import close_distributed, init_distributed
from dyme.opening import open_run
from dyme.rollout.types import Rollout
from dyme.scoring import Scoring

config, folder = sys.argv[1], sys.argv[2]
pause = float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0
cfg = load_config(config, [f"run.dir={folder}"])
init_distributed(cfg.run.seed)
run = open_run(cfg)
score = Scoring._score


def said(scoring: Scoring, row: int) -> str:
    record, step = scoring._record(row), scoring.batch.step
    chance = random.Random(f"{record.id} {step} {row}")
    mixed = random.Random(f"{record.id} {step}").random() < 0.5
    answer = record.answer if mixed and row % 2 else "nobody knows"
    return f"{record.facts} {chance.choice(['so', 'thus', 'then', 'hence'])} {answer}.\nAnswer: {answer}"


def scripted(scoring: Scoring, rows: tuple[int, ...], rollouts: list[Rollout]) -> object:
    texts = iter([said(scoring, row) for row in rows])
    run.engine.family.decode = lambda tokens: next(texts)  # type: ignore[method-assign]
    return score(scoring, rows, [replace(rollout, truncated=False) for rollout in rollouts])


Scoring._score = scripted  # type: ignore[method-assign, assignment]
log_step = run.folder.log_step


def slowly(step: int, metrics: dict[str, float], bad_rows: int) -> None:
    log_step(step, metrics, bad_rows)
    time.sleep(pause)


run.folder.log_step = slowly  # type: ignore[method-assign]
trainer.train(run)
digest = hashlib.sha256()
for name, tensor in run.engine.rollout_copy.refresh().state_dict().items():
    digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
held = json.dumps([run.supervisor.pool.state_dict(), run.supervisor.totals, run.position.memorize_log.state_dict()])
digest.update(held.encode())
sys.stdout.write(f"digest {digest.hexdigest()}\n")  # in one piece: ranks share the pipe
sys.stdout.flush()
close_distributed()
os._exit(0)
