"""TRL's GRPOTrainer on the same model, records, K, lengths and reward."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.rollout.meter import Meter, seconds
from benchmarks.rollout.workload import checkpoint, placeholders
from benchmarks.step.case import WARM_UP, Case, Counts, mixed_groups, scripted, write_records
from benchmarks.step.ours import row
from dyme.families import load_family


def measure(case: Case, folder: Path, device: torch.device) -> list[dict[str, Any]]:
    """Every timed step: share, cost, phases, counts. In one process, without DeepSpeed, weights in the case's dtype."""
    import trl
    from transformers import TrainerCallback

    family, model = load_family(checkpoint(case.model, folder / "checkpoints"), dtype=case.dtype)
    phases: dict[str, float] = {}
    counts = Counts()
    rows: list[dict[str, Any]] = []

    def reward(completions: list[Any], id: list[str], **_: Any) -> list[float | None]:
        return list(scripted(id))

    def count_forward(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            counts.rows += len(kwargs["input_ids"])
            counts.tokens += int(kwargs["attention_mask"].sum())
            counts.padded_tokens += kwargs["input_ids"].numel()

    class Steps(TrainerCallback):
        """Measures from the beginning of a step to its end, with the trainer's own loop between them."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            phases.clear()
            counts.__init__()  # type: ignore[misc]
            self.meter = Meter(device)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, cost = state.global_step - 1, self.meter.stop()
            # rows of mixed groups: the others have advantage 0 and no gradient, but TRL runs them all the same
            counts.train_sequences = mixed_groups(case, case.share(step)) * case.group_size
            whole = cost.wall_s if device.type == "cuda" else cost.cpu_s
            rows.append(row(case, step, cost, _by_phase(phases, whole), counts))

    with tempfile.TemporaryDirectory() as place:
        trainer: Any = trl.GRPOTrainer(
            model=cast(Any, model),
            reward_funcs=reward,
            args=_arguments(trl, case, family, Path(place), device),
            train_dataset=_dataset(write_records(case, folder)),
            processing_class=family.processor,
            callbacks=[Steps()],
        )
        handle = trainer.model.register_forward_pre_hook(count_forward, with_kwargs=True)
        _watch(trainer, phases, counts, device)
        trainer.train()
        handle.remove()
    return rows[len(case.shares) * WARM_UP :]


def _arguments(trl: Any, case: Case, family: Any, place: Path, device: torch.device) -> Any:
    rows = case.prompts * case.group_size
    if rows % case.micro_rows:
        raise ValueError(f"micro_rows {case.micro_rows} must divide the {rows} rows of a step")
    held = placeholders(family)
    return trl.GRPOConfig(
        output_dir=str(place),
        per_device_train_batch_size=case.micro_rows,
        gradient_accumulation_steps=rows // case.micro_rows,
        num_generations=case.group_size,
        max_completion_length=case.new_tokens,
        generation_kwargs={"min_new_tokens": case.new_tokens, **({"suppress_tokens": held} if held else {})},
        shuffle_dataset=False,
        max_steps=case.steps,
        learning_rate=1e-6,
        beta=0.0,
        loss_type="grpo",
        logging_steps=10**6,
        save_strategy="no",
        report_to=[],
        use_cpu=device.type == "cpu",
        bf16=case.dtype == "bf16",
        gradient_checkpointing=case.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_tqdm=True,
    )


def _dataset(records: Path) -> Any:
    import datasets

    held = [
        {
            "prompt": [{"role": "user", "content": r["question"]}],
            "image": str(records.parent / r["image"]),
            "id": r["id"],
        }
        for r in map(json.loads, records.read_text(encoding="utf-8").splitlines())
    ]
    return datasets.Dataset.from_list(held).cast_column("image", datasets.Image())


def _watch(trainer: Any, phases: dict[str, float], counts: Counts, device: torch.device) -> None:
    """Times the trainer's methods by wrapping them: what is left of a step is its optimizer and loop."""

    def wrap(name: str, phase: str, look: Callable[[Any], None] = lambda result: None) -> None:
        method = getattr(trainer, name)

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = seconds(device)
            result = method(*args, **kwargs)
            phases[phase] = phases.get(phase, 0.0) + seconds(device) - begin
            look(result)
            return result

        setattr(trainer, name, timed)

    def note_prompts(result: Any) -> None:
        for ids in result[0]:
            if tuple(ids) not in counts.prompts:
                counts.prompts += (tuple(ids),)

    def note_replies(result: Any) -> None:
        counts.reply_tokens += sum(map(len, result[0]))

    wrap("_tokenize_prompts", "prompts", note_prompts)
    wrap("_generate_single_turn", "rollout", note_replies)
    wrap("_calculate_rewards", "score")
    wrap("_generate_and_score_completions", "_generation")
    wrap("training_step", "_training")


def _by_phase(phases: dict[str, float], whole: float) -> dict[str, float]:
    """Without those that lie around others."""
    held = {name: seconds for name, seconds in phases.items() if not name.startswith("_")}
    forward_backward = phases["_training"] - phases["_generation"]
    update = whole - phases["_generation"]
    held |= {"update": update, "forward and backward": forward_backward}
    return held | {"optimizer": update - forward_backward}
