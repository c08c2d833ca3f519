"""Training through a rollout engine that dyme knows nothing of: outside CONFIG RUN_DIR EVENTS.

The engine has a model of its own, which it gets its weights for, and encodes text and pictures itself. One line in the
registry makes it a value of `rollout.engine`. Rank 0 writes to EVENTS what was asked of it, and when an update ran.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dyme.settings.engines import ENGINES

ENGINES["outside"] = "__main__:Outside"  # the one line, there before the settings are read

from dyme.families import Family  # noqa: E402  after the line
from dyme.rollout.engine import FixedWeights, RolloutEngine, Weights  # noqa: E402
from dyme.rollout.hf import HfEngine  # noqa: E402
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore  # noqa: E402

EVENTS: list[str] = []


class Outside(RolloutEngine):
    tells_logprobs = False

    def __init__(self, family: Family, weights: Weights) -> None:
        self.family, self.weights, self.version = family, weights, weights.version
        self.model = copy.deepcopy(weights.model)

    def update_weights(self) -> None:
        self.weights.begin_refresh()
        if self.version != self.weights.version:
            self.version = self.weights.version
            EVENTS.append("weights")
            self.model.load_state_dict(self.weights.place().state_dict())
            self.weights.park()

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, finished: Finished = ignore
    ) -> list[Rollout]:
        EVENTS.append("generate")
        own = [
            replace(r, prompt=self.family.encode(r.prompt.text, r.prompt.pictures(), r.prompt.system)) for r in requests
        ]
        return HfEngine(self.family, FixedWeights(self.model)).generate(own, sampling, finished)

    def sleep(self) -> None:
        EVENTS.append("sleep")

    def close(self) -> None:
        EVENTS.append("close")


def main() -> None:
    config, folder, events = sys.argv[1:]
    from dyme import trainer
    from dyme.config import load_config
    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.opening import open_run

    cfg = load_config(config, [f"run.dir={folder}", "rollout.engine=outside"])
    rank = init_distributed(cfg.run.seed)
    run = open_run(cfg)
    step = run.engine.step

    def noted(factor: float) -> object:
        EVENTS.append("update")
        return step(factor)

    run.engine.step = noted  # type: ignore[method-assign, assignment]
    trainer.train(run)
    if rank == 0:
        Path(events).write_text(json.dumps(EVENTS))
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
