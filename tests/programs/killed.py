"""A training run in which rank 0 kills itself: usage: killed.py CONFIG RUN_DIR AFTER_STEP DURING_SAVE (0: not
there)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from dyme import trainer
from dyme.config import load_config
from dyme.engine.train_engine import init_distributed
from dyme.opening import open_run

config, folder, after_step, during_save = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cfg = load_config(config, [f"run.dir={folder}"])
rank = init_distributed(cfg.run.seed)
run = open_run(cfg)
log_step, save_checkpoint = run.folder.log_step, run.engine.ds.save_checkpoint


def die() -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def log_then_die(step: int, *logged: object) -> None:
    log_step(step, *logged)
    if step == after_step:
        die()


def save_half(save_dir: str, tag: str, **kwargs: object) -> None:
    if during_save and tag.endswith(f"{during_save:08d}"):
        (Path(save_dir) / tag).mkdir(parents=True, exist_ok=True)
        (Path(save_dir) / tag / "half.pt").write_bytes(b"x")
        die()
    save_checkpoint(save_dir, tag=tag, **kwargs)


run.folder.log_step = log_then_die
run.engine.ds.save_checkpoint = save_half
trainer.train(run)
