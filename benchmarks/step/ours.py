"""Our step, as it is and with the published behaviour."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.kernels.results import ROOT
from benchmarks.rollout.meter import Cost, measured, seconds
from benchmarks.rollout.workload import checkpoint, fix_length
from benchmarks.step.case import RIGHT, WARM_UP, Case, Counts, scripted, write_records
from dyme import stages
from dyme.batching.objective import TrainSequence, TrainSequences
from dyme.config import RunConfig
from dyme.data import Record
from dyme.engine.train_engine import init_distributed
from dyme.families import Family
from dyme.families.attention import PADDING
from dyme.fault_tolerance.launch import quiet
from dyme.opening import open_run
from dyme.sampler import StepBatch
from dyme.scoring import Scoring
from dyme.trainer import train_step


class Ours:
    """A run whose steps are measured one by one. published: rollouts by transformers' generate, every row with a prompt
    of its own, dead rows kept."""

    def __init__(self, case: Case, folder: Path, device: torch.device, *, published: bool) -> None:
        quiet()
        init_distributed(0)
        self.case, self.device = case, device
        self.phases: dict[str, float] = {}
        self.counts = Counts()
        self.step_metrics: dict[str, float] = {}
        self._stack = ExitStack()
        place = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.run = open_run(_config(case, folder, Path(place), published))
        fix_length(self.run.engine.family)
        self._published = published
        self._watch()

    def close(self) -> None:
        self.run.folder.logger.close()
        self._stack.close()

    def step(self, step: int) -> tuple[Cost, dict[str, float], Counts]:
        """Cost, seconds by phase and counts of one training step."""
        self.phases, self.counts = {}, Counts()
        with _scripted(self), _published(self.run.engine.family) if self._published else ExitStack():
            cost, self.step_metrics = measured(self.device, lambda: train_step(self.run, step))
        return cost, dict(self.phases), self.counts

    def _watch(self) -> None:
        """Phases are timed at the seams of run and engine; what lies between them is the rest."""
        clock, cache, engine = self.run.clock, self.run.prompt_cache, self.run.engine
        phase, encode, forward_backward, optimizer = clock.phase, cache.encode, engine.forward_backward, engine.step

        @contextmanager
        def timed_phase(name: str) -> Iterator[None]:
            with self._phase(name), phase(name):
                yield

        def counted(batch: Any, inputs: Any, *, last: bool) -> Any:
            real = batch.layout.branch != PADDING
            self.counts.tokens += int(real.sum())
            self.counts.padded_tokens += batch.input_ids.numel()
            for branches in batch.layout.branch:
                self.counts.rows += len({b for b in branches.tolist() if b >= 0})
            with self._phase("forward and backward"):
                return forward_backward(batch, inputs, last=last)

        def timed_step(*args: Any, **kwargs: Any) -> Any:
            with self._phase("optimizer"):
                return optimizer(*args, **kwargs)

        def noted(record: Record) -> Any:
            prompt = encode(record)
            assert prompt is not None, "the benchmark's own pictures can be read"
            ids = tuple(prompt.input_ids.tolist())
            if ids not in self.counts.prompts:
                self.counts.prompts += (ids,)
            return prompt

        clock.phase, cache.encode = timed_phase, noted  # type: ignore[method-assign]
        engine.forward_backward, engine.step = counted, timed_step  # type: ignore[method-assign]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begin = seconds(self.device)
        yield
        self.phases[name] = self.phases.get(name, 0.0) + seconds(self.device) - begin


def _config(case: Case, folder: Path, place: Path, published: bool) -> RunConfig:
    rollout: dict[str, Any] = {
        "prompts_per_step": case.prompts,
        "group_size": case.group_size,
        "max_new_tokens": case.new_tokens,
        "batch_size": case.prompts * case.group_size,
    }
    path = str(checkpoint(case.model, folder / "checkpoints"))
    model: dict[str, Any] = {"path": path, "dtype": case.dtype, "gradient_checkpointing": case.checkpointing}
    if published:
        rollout["engine"] = "hf"
        model["packed_attention"] = "sdpa"  # padded rows on a GPU too, where auto joins rows into one sequence
    return RunConfig.model_validate(
        {
            "model": model,
            "data": {"train": {"source": "jsonl", "path": str(write_records(case, folder))}, "shuffle": False},
            "prompt": {"template": "{question}"},
            "rollout": rollout,
            "optim": {"lr": 1e-6},
            "train": {"max_steps": case.steps, "token_budget": case.budget},
            "run": {"dir": str(place / "run"), "tensorboard": False, "export": False, "report": False},
            "deepspeed": str(ROOT / "ds_configs" / "zero2.json"),
        }
    )


@contextmanager
def _scripted(ours: Ours) -> Iterator[None]:
    """The scores of real rewards are computed and then replaced by the script's."""
    score, sequences = stages.score, stages.sequences

    def scripted_score(batch: StepBatch, rank: int, scoring: Scoring) -> dict[str, Tensor]:
        columns = score(batch, rank, scoring)
        rollouts = dict(sorted(scoring.rollouts.items()))
        scores = scripted([scoring.records[batch.records[batch.group_of(row)]].id for row in rollouts])
        rewards = torch.tensor(scores, dtype=torch.float64)
        columns |= {"reward": rewards, "scored": torch.ones_like(rewards)}
        columns |= dict.fromkeys(("correct", "accuracy", "thinking", "format"), rewards / RIGHT)
        ours.counts.reply_tokens += sum(len(rollout.tokens) for rollout in rollouts.values())
        return columns

    def counted_sequences(*args: Any) -> TrainSequences:
        found = sequences(*args)
        ours.counts.train_sequences += sum(each.share > 0 and each.advantage != 0 for each in found.trained)
        return found

    with mock.patch.multiple(stages, score=scripted_score, sequences=counted_sequences):
        yield


@contextmanager
def _published(family: Family) -> Iterator[None]:
    """Every group runs K rows through forward and backward: its rollouts, the first of which gives way to the
    demonstration where the group memorizes. Rows that do not train have advantage and weight 0. Each row brings
    its own prompt."""
    sequences, weigh = stages.sequences, stages.token_weights

    def with_dead(cfg: RunConfig, batch: StepBatch, *args: Any) -> TrainSequences:
        found = sequences(cfg, batch, *args)
        kept = {each.completion for each in found.trained}
        memorize = {each.group for each in found.trained if each.memorize}
        dead = [
            TrainSequence(group, row, 0.0, 0.0)
            for group, (first, end) in enumerate(zip(batch.offsets, batch.offsets[1:]))
            for row in range(first + (group in memorize), end)
            if row not in kept
        ]
        everything = sorted([*found.trained, *dead], key=lambda each: (each.group, each.memorize, each.completion))
        return TrainSequences(tuple(everything), found.counted)

    def with_zeros(found: TrainSequences, *args: Any, **kwargs: Any) -> list[float]:
        alive = tuple(each for each in found.trained if each.share > 0)
        weights = dict(zip(alive, weigh(TrainSequences(alive, found.counted), *args, **kwargs), strict=True))
        return [weights.get(each, 0.0) for each in found.trained]

    with (
        mock.patch.multiple(stages, sequences=with_dead, token_weights=with_zeros),
        mock.patch.object(family, "packs_trees", False, create=True),
    ):
        yield


def measure(case: Case, folder: Path, device: torch.device, provider: str) -> list[dict[str, Any]]:
    """Every timed step: share, cost, phases, counts."""
    ours = Ours(case, folder, device, published=provider == "published")
    try:
        return [row(case, s, *ours.step(s)) for s in range(case.steps)][len(case.shares) * WARM_UP :]
    finally:
        ours.close()


def row(case: Case, step: int, cost: Cost, phases: dict[str, float], counts: Counts) -> dict[str, Any]:
    """One measured step as it is kept."""
    shown = counts.as_dict(case.prompts * case.group_size)
    return {"share": case.share(step), "cost": cost.__dict__, "phases": phases, "counts": shown}
