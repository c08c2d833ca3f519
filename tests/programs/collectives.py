"""Counts the collectives of whole training steps of different sizes, one after the other.

usage: torchrun --nproc_per_node N -m tests.programs.collectives OUT_DIR STAGE CASES.json
CASES.json: [{"prompts": 2, "group_size": 2, "explore": false, "token_budget": 8192}, ...]
Every rank writes OUT_DIR/counts<rank>.json: [{"micro": M, "calls": [[name, ...], [name, ...]]}, ...], the calls of two
steps of each case.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from tests.stress.network.collectives import Recorder
from tests.stress.network.workload import config

REWARD = """import zlib


def reward(completions, **_):
    return [zlib.crc32(str(c).encode()) % 97 for c in completions]
"""


def main() -> None:
    recorder = Recorder()
    out, stage, cases = Path(sys.argv[1]), int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    from dyme.config import RunConfig
    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.fault_tolerance.launch import quiet
    from dyme.opening import open_run
    from dyme.selectors import make_selector
    from tests.stress.network.rank import whole_step

    quiet()
    rank = init_distributed(0)
    (out / f"reward{rank}.py").write_text(REWARD)
    user = {"user": [{"function": f"{out / f'reward{rank}.py'}:reward"}]}

    def settings(case: dict) -> RunConfig:
        tree = config(out / f"rank{rank}", stage, case["prompts"], case["group_size"], reward=user)
        tree["train"]["token_budget"] = case["token_budget"]
        tree["selector"] = {"name": "always_explore" if case["explore"] else "always_memorize"}
        return RunConfig.model_validate(tree)

    run = open_run(settings(cases[0]))
    forward_backward, micro, found, number = run.engine.forward_backward, [0], [], 0

    def counted(*args, **kwargs):
        micro[0] += 1
        return forward_backward(*args, **kwargs)

    run.engine.forward_backward = counted
    for case in [cases[0], *cases]:  # ZeRO-3 learns the order of the modules in the first steps
        run = replace(run, cfg=settings(case))
        run.position.selector = make_selector(run.cfg.selector)
        steps = []
        for _ in range(2):
            micro[0] = 0
            with recorder.step() as calls:
                whole_step(run, number)
            number += 1
            steps.append([name for name, _ in calls])
        found.append({"micro": micro[0], "calls": steps})
    (out / f"counts{rank}.json").write_text(json.dumps(found[1:]))
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
