"""Three optimizer steps on a tiny VLM that hold what breaks distributed training, and their plain single-process
result."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from PIL import Image

from dyme.batching.objective import TrainSequence, kl_share, token_weights, train_sequences
from dyme.config import RunConfig
from dyme.families import Prompt, build_family
from dyme.selectors import make_selector
from dyme.selectors.base import group_stats, with_extra
from dyme.settings.selector import SelectorConfig
from dyme_kernels import LossSpec
from tests.helpers.tiny import TINY

SPEC = SimpleNamespace(**TINY)


@dataclass(frozen=True)
class Step:
    prompts: list[Prompt]
    rows: list[TrainSequence]
    tokens: list[list[int]]
    weights: list[float]
    token_budget: int
    token_shaping: str = "none"
    kl_share: float = 1.0


def build(lora_head: bool = False) -> tuple:
    torch.manual_seed(0)
    family, model = build_family("idefics3", SPEC, ["value of red?", "red 3", "think"] * 20)
    if lora_head:
        from peft import LoraConfig, inject_adapter_in_model

        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"], init_lora_weights=False)
        inject_adapter_in_model(lora, model)
        model.requires_grad_(True)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.15)
    rng = torch.Generator().manual_seed(1)

    def prompt(image: bool, words: int) -> Prompt:
        color = tuple(torch.randint(0, 255, (3,), generator=rng).tolist())
        return family.encode("red " * words, [Image.new("RGB", (32, 32), color)] if image else [])

    def step(prompts: list[Prompt], live: list[tuple[int, int, float]], budget: int) -> Step:
        """live: (group, row or -1, advantage)."""
        rows = [TrainSequence(g, r, a, 1.0) for g, r, a in live]
        lengths = torch.randint(1, 9, (len(rows),), generator=rng).tolist()
        tokens = [torch.randint(60, 300, (n,), generator=rng).tolist() for n in lengths]
        weights = (torch.rand(len(rows), generator=rng) * 0.2 + 0.01).tolist()
        return Step(prompts, rows, tokens, weights, budget)

    image_text = [prompt(True, 3), prompt(False, 9), prompt(True, 1), prompt(False, 2)]
    steps = [
        # mixed modes, images and text, a budget that gives several micro-batches
        step(
            image_text,
            [
                (0, 0, 1.0),
                (0, 1, -1.0),
                (0, 2, 0.5),
                (1, -1, 1.0),
                (2, 8, -0.3),
                (2, 9, 0.7),
                (2, -1, 1.0),
                (3, 12, 2.0),
            ],
            36,
        ),
        # text only: the vision tower is trained, yet no record of the step shows a picture
        step([prompt(False, 4), prompt(False, 6)], [(0, -1, 1.0), (1, 4, 0.4), (1, 5, -0.4)], 1000),
        # one sequence: all ranks but one have nothing to train
        step([prompt(True, 2), prompt(True, 5)], [(1, -1, 1.0)], 1000),
        # one image group among text groups: a rank without an image in its micro-batch
        step(
            [prompt(True, 2), *(prompt(False, n) for n in (3, 5, 7, 8))],
            [(0, 0, 1.5), *((g, g * 8, 0.3) for g in (1, 2, 3, 4))],
            1000,
        ),
    ]
    return family, model, steps


def joint(steps: list[Step]) -> list[Step]:
    """The prompts of `steps` under `scheduled`: each group trains its rollouts and its reference, with weights and a KL
    term that change from step to step, under another normalization each. In the last step a record that waited joins:
    a group without rollouts."""
    rng = torch.Generator().manual_seed(2)
    cfg = config(objective={"beta": {"start": 0.0, "end": LOSSES["joint"].spec.beta, "steps": 3}})
    selector = make_selector(SelectorConfig(name="scheduled", peak=0.8, valley=0.2))
    made = []
    for number, (step, normalization) in enumerate(zip(steps, ("group", "row", "token", "component"), strict=True)):
        extra = int(number == len(steps) - 1)
        groups = len(step.prompts) - extra
        rewards = torch.rand(2 * groups, generator=rng, dtype=torch.float64)
        every, offsets = torch.ones(2 * groups, dtype=torch.bool), [*range(0, 2 * groups + 1, 2)]
        stats = group_stats(
            rewards, (rewards > 0.5).double(), every.double(), every, every[:groups], torch.tensor(offsets), "std"
        )
        decision = with_extra(selector.select(stats, number / len(steps)), every[:extra])
        live = train_sequences(decision, stats.advantages, every, offsets + [2 * groups] * extra)
        lengths = dict(zip(live.counted, torch.randint(1, 9, (len(live.counted),), generator=rng).tolist()))
        tokens = [torch.randint(60, 300, (lengths[row],), generator=rng).tolist() for row in live.trained]
        weights = token_weights(
            live, lengths, normalization, groups=groups, rows=2 * groups, max_new_tokens=9, memorize_weight=0.5
        )
        made.append(
            Step(
                step.prompts,
                list(live.trained),
                tokens,
                weights,
                step.token_budget,
                decision.token_shaping,
                kl_share(cfg, number),
            )
        )
    return made


def config(**changes: object) -> RunConfig:
    tree = {
        "model": {"path": "unused"},
        "data": {"train": {"source": "charts", "count": 1}},
        # key biases have a gradient of rounding noise only; a larger eps keeps Adam from blowing it up to full steps
        "optim": {"lr": 1e-2, "weight_decay": 0.1, "grad_clip": 0.5, "betas": (0.9, 0.95), "eps": 1e-5},
        "train": {"token_budget": 1000},
        **changes,
    }
    return RunConfig.model_validate(tree)


def row_logprobs(model: torch.nn.Module, prompt: Prompt, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of one reply on its own, through the stock model."""
    ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.pixels).logits[0]
    logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logp.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@dataclass(frozen=True)
class Loss:
    """Epochs per rollout and the loss of the kernels."""

    epochs: int
    spec: LossSpec
    joint: bool = False
    """The steps are those of `joint`."""


LOSSES = {
    "plain": Loss(1, LossSpec()),
    "clip": Loss(2, LossSpec(beta=0.3)),
    "joint": Loss(2, LossSpec(beta=0.3), joint=True),
    "gspo": Loss(2, LossSpec(surrogate="gspo", epsilon_low=0.02, epsilon_high=0.02, beta=0.05)),
}
LORA = {"r": 4, "alpha": 64, "vision": True}
SCALING = {False: 64 / 4, True: 8 / 4}
"""alpha / r of LORA, and of the head that `build` wraps."""


def row_loss(
    loss: Loss, step: Step, row: TrainSequence, logp: torch.Tensor, old: torch.Tensor, ref: torch.Tensor
) -> torch.Tensor:
    """Token losses of one row, as docs/method.md writes them."""
    if row.memorize:
        p = logp.detach().exp()
        return -row.advantage * (p * (1 - p) if step.token_shaping == "p(1-p)" else 1) * logp
    ratio = (logp - old).exp() if loss.spec.surrogate == "clip" else (logp - old).mean().exp().expand(len(logp))
    clipped = ratio.clamp(1 - loss.spec.epsilon_low, 1 + loss.spec.epsilon_high)
    surrogate = -torch.minimum(ratio * row.advantage, clipped * row.advantage)
    return surrogate + loss.spec.beta * step.kl_share * ((ref - logp).exp() - (ref - logp) - 1)


def reference(
    loss: Loss = LOSSES["plain"],
    lora_head: bool = False,
    model_settings: dict[str, object] | None = None,
) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor], list[float]]:
    """Gradients of every step before clipping, the final weights, and the gradient norms: one process, one row at a
    time. `model_settings`: of the run configuration; with `lora` the adapters alone have gradients."""
    from dyme.engine.lora import add_lora
    from dyme.engine.train_engine import parameter_groups

    family, model, steps = build(lora_head)
    steps = joint(steps) if loss.joint else steps
    initial = copy.deepcopy(model)
    cfg = config(model={"path": "unused", **(model_settings or {})})
    if cfg.model.lora:
        add_lora(family, model, cfg.model.lora, cfg.run.seed)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameter_groups(family.parts(model), cfg.optim), betas=cfg.optim.betas, eps=cfg.optim.eps
    )
    gradients, norms = [], []
    for step in steps:
        old: dict[int, torch.Tensor] = {}
        for _ in range(loss.epochs):
            optimizer.zero_grad()
            for i, (row, tokens, weight) in enumerate(zip(step.rows, step.tokens, step.weights, strict=True)):
                logp = row_logprobs(model, step.prompts[row.group], tokens)
                ref = row_logprobs(initial, step.prompts[row.group], tokens).detach()
                old.setdefault(i, logp.detach())
                (weight * row_loss(loss, step, row, logp, old[i], ref)).sum().backward()
            zero = {n: torch.zeros_like(p) for n, p in trained.items()}
            gradients.append(zero | {n: p.grad.clone() for n, p in trained.items() if p.grad is not None})
            for p in trained.values():  # the vision tower of a text-only step has a zero gradient, not none
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.grad_clip)))
            optimizer.step()
    return gradients, {n: p.detach().clone() for n, p in model.named_parameters()}, norms
