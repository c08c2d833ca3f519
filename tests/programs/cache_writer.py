"""A process that asks many questions through a shared cache: `python -m tests.programs.cache_writer URL DIR SEED`"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

from dyme.supervision.judge import open_judge
from tests.helpers.judge_asking import config, question


def main(url: str, folder: str, seed: str) -> None:
    judge = open_judge(config(url, concurrency=4), Path(folder))
    order = [str(i) for i in range(100)]
    random.Random(int(seed)).shuffle(order)
    print("ready", flush=True)
    sys.stdin.readline()
    answers = judge.ask([question(user) for user in order], 60)
    wrong = [user for user, answer in zip(order, answers) if answer.value != {"rating": "high"}]
    counts = judge.counts()
    judge.close()
    print(json.dumps(dataclasses.asdict(counts) | {"wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
