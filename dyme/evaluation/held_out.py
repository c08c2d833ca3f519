"""Evaluation during training: greedy answers to the first n held-out records, spread over ranks, and some of them as
samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dyme.config import RunConfig
from dyme.data import ImageError, Record
from dyme.engine.train_engine import TrainEngine
from dyme.metrics.columns import gather_columns
from dyme.metrics.logger import MetricsLogger, Sample, SilentLogger
from dyme.prompts import PromptCache
from dyme.rewards.answer import read_completion
from dyme.rewards.compose import score
from dyme.rollout.engine import RolloutEngine
from dyme.rollout.types import Rollout, RolloutRequest, sampling_of
from dyme.supervision.lexical import lexical_checker


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out records, shares in [0, 1] but `length_mean` (tokens). `n` counts records with a readable
    prompt."""

    accuracy: float
    format_rate: float
    thinking_mean: float
    length_mean: float
    n: int

    def metrics(self) -> dict[str, float]:
        return {f"eval/{name}": value for name, value in vars(self).items()}


def evaluate(
    cfg: RunConfig,
    engine: TrainEngine,
    rollout: RolloutEngine,
    records: Sequence[Record],
    cache: PromptCache,
    step: int,
    metrics: MetricsLogger | SilentLogger,
    goes_on: Callable[[], bool] = lambda: True,
) -> Evaluation | None:
    """Accuracy counts a right answer in a valid format. Rank 0 writes the samples of `run.samples` records. `goes_on`
    is called before each batch; where it returns False on any rank, the result is None on all."""
    records = records[: cfg.run.eval_records]
    mine = range(engine.rank, len(records), engine.world_size)
    answers, whole = _answers(cfg, rollout, records, mine, cache, goes_on)
    texts = [engine.family.decode(r.tokens) for r in answers.values()]
    scores = score(
        texts,
        [records[i] for i in answers],
        truncated=[r.truncated for r in answers.values()],
        config=cfg.reward,
        flag=cfg.prompt.answer_flag,
        style=cfg.prompt.style,
        checker=lexical_checker(cfg.supervision),  # a judge's verdicts would differ between evaluations
    )
    columns = {
        "record": list(answers),
        "correct": scores.correct,
        "format": scores.format,
        "thinking": scores.thinking,
        "length": [len(r.tokens) for r in answers.values()],
    }
    ended = gather_columns(engine.gather_rows, {"n": [len(answers)], "whole": [whole]}, [1] * engine.world_size)
    if not ended["whole"].all():
        return None
    counts = [int(n) for n in ended["n"]]
    if not sum(counts):
        return Evaluation(0.0, 0.0, 0.0, 0.0, 0)
    table = {name: column.cpu() for name, column in gather_columns(engine.gather_rows, columns, counts).items()}
    sampled = _spread(len(records), cfg.run.samples)
    replies = {i: text for i, text in zip(answers, texts) if i in sampled}
    _write_samples(cfg, engine, records, replies, table, step, metrics)
    mean = {name: float(column.nan_to_num().mean()) for name, column in table.items()}
    return Evaluation(mean["correct"], mean["format"], mean["thinking"], mean["length"], sum(counts))


def _answers(
    cfg: RunConfig,
    rollout: RolloutEngine,
    records: Sequence[Record],
    mine: range,
    cache: PromptCache,
    goes_on: Callable[[], bool],
) -> tuple[dict[int, Rollout], bool]:
    """Greedy completions of this rank's readable records, and whether these are all; pictures are held for one batch at
    a time."""
    batch = cfg.rollout.batch_size
    sampling = sampling_of(cfg.rollout, greedy=True)
    rollout.update_weights()
    answers: dict[int, Rollout] = {}
    for at in range(0, len(mine), batch):
        if not goes_on():
            return answers, False
        part = mine[at : at + batch]
        prompts = {i: p for i, p in zip(part, cache.encode_all([records[i] for i in part])) if p is not None}
        requests = [RolloutRequest(prompt) for prompt in prompts.values()]
        answers.update(zip(prompts, rollout.generate(requests, sampling), strict=True))
        cache.clear()
    return answers, True


def majority_rates(records: Sequence[Record]) -> dict[str, float]:
    """Accuracy without looking at pictures: of the commonest answer of all records, and of that of each kind."""
    answers = Counter(r.answer for r in records)
    kinds = Counter((r.kind, r.answer) for r in records)
    by_kind: Counter[str] = Counter()
    for (kind, _), count in kinds.items():
        by_kind[kind] = max(by_kind[kind], count)
    return {
        "eval_majority_rate": max(answers.values()) / len(records),
        "eval_majority_rate_by_kind": sum(by_kind.values()) / len(records),
    }


def _spread(count: int, samples: int) -> set[int]:
    """Indices of `samples` records, evenly over all of them: the same at every evaluation."""
    return {i * count // samples for i in range(samples)} if count and samples else set()


def _write_samples(
    cfg: RunConfig,
    engine: TrainEngine,
    records: Sequence[Record],
    replies: dict[int, str],
    table: Mapping[str, Tensor],
    step: int,
    metrics: MetricsLogger | SilentLogger,
) -> None:
    packed = [[i, *text.encode()] for i, text in sorted(replies.items())]
    gathered = engine.gather_tokens(packed)
    if engine.rank:
        return
    numbers = (table[name].tolist() for name in ("record", "correct", "format"))
    verdict = {int(i): (correct > 0.5, int(valid)) for i, correct, valid in zip(*numbers, strict=True)}
    samples = []
    for index, *raw in sorted(item for rank in gathered for item in rank):
        record, text = records[index], bytes(raw).decode(errors="replace")
        parts = read_completion(text, cfg.prompt.answer_flag, cfg.prompt.style)
        samples.append(
            Sample(
                step=step,
                id=record.id,
                kind=record.kind,
                question=record.question,
                gold=record.answer,
                completion=text,
                thinking=parts.thinking,
                answer=parts.answer or "",
                correct=verdict[index][0],
                format=verdict[index][1],
                guessed=parts.guessed,
                image=_saved(metrics, record),
            )
        )
    metrics.log_samples(samples)


def _saved(metrics: MetricsLogger | SilentLogger, record: Record) -> str | None:
    """The file of the record's pictures; None without them, or where they have gone since they were encoded."""
    try:
        return metrics.save_image(record.id, record.shown) if record.images else None
    except ImageError:
        return None
