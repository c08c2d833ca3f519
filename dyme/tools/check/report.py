"""Check: properties of a checkpoint and the memory to train it, from its text files and the headers of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from dyme.config import RunConfig
from dyme.engine.lora import matching_linears
from dyme.families import DTYPES, Family, ModelError, find_family, open_family
from dyme.families.attention import head_width, resolve_attention
from dyme.families.base import IMAGE
from dyme.families.files import chat_template_file, check_fit, encoding_error, has_weights, read_weights, skeleton
from dyme.prompts import check_context, encode_turn, fit_pixels
from dyme.rollout.cache import column_bucket, reply_bucket
from dyme.rollout.registry import engine_class
from dyme.rollout.shared_prefix import PREFILL_TOKENS, SharedPrefixEngine
from dyme.settings.deepspeed import read_deepspeed
from dyme.settings.lora import LoraConfig
from dyme.tools import footprint as mem

SIZES = ((600, 400), (1200, 800))
QUESTION = "What is shown in this picture?"


@dataclass(frozen=True)
class Picture:
    """A picture of `size` becomes `tokens` image tokens in a prompt of `prompt` tokens. resized: its size after
    model.max_pixels, None where it fits."""

    size: tuple[int, int]
    resized: tuple[int, int] | None
    tokens: int
    prompt: int


@dataclass(frozen=True)
class Report:
    """Results of the check. parts: parameters by part, shared ones counted once. files, dtypes: None without weights.
    special: role -> tokens. missing: why the checkpoint cannot be used although the other fields are valid."""

    path: str
    family: str
    model_type: str
    parts: dict[str, int]
    parameters: int
    tied: bool
    files: dict[str, int] | None
    dtypes: dict[str, int] | None
    unused: tuple[str, ...]
    layers: int
    context: int | None
    chat_template: str
    text_prompt: int
    pictures: tuple[Picture, ...]
    special: dict[str, str]
    packs: bool
    run: str
    trained: int
    estimate: mem.Estimate
    missing: str | None


@dataclass(frozen=True)
class Sizes:
    """Inputs of the estimate. rollouts, evaluated: rows of a rank in a step and in an evaluation. pictures: as encoded
    in a prompt. text_prompt: tokens of a prompt without pictures."""

    load: mem.Load
    zero: mem.Zero
    decoder: mem.Decoder
    tower: mem.Tower | None
    rollouts: int
    evaluated: int
    pictures: tuple[Picture, ...]
    text_prompt: int

    def estimate(self, token_budget: int | None = None, batch_size: int | None = None) -> mem.Estimate:
        """The estimate of the run, or with other values of `train.token_budget` and `rollout.batch_size`."""
        load = self.load
        if token_budget is not None:
            load = replace(load, token_budget=token_budget)
        if batch_size is not None:
            load = replace(load, rows=min(batch_size, self.rollouts), evaluated=min(batch_size, self.evaluated))
        return mem.estimate(load, self.zero, self.decoder, self.tower)


def check(
    path: str | Path, cfg: RunConfig | None = None, pictures: Sequence[Image.Image] = (), ranks: int = 1
) -> Report:
    """Checks a checkpoint folder and estimates a run of `cfg` (all defaults, in bf16, if None) on `ranks` GPUs.

    `pictures` represent those of the records. No weights are read. Raises `ModelError` and `ConfigError`.
    """
    folder = Path(path)
    if cfg:
        zero, source = read_zero(cfg), cfg.deepspeed
    else:
        tree = {"model": {"path": str(folder), "dtype": "bf16"}, "data": {"train": {"source": "charts", "count": 1}}}
        cfg, zero, source = RunConfig.model_validate(tree), mem.Zero(), ""
    if cfg.model.family != "auto":
        find_family(folder, cfg.model.family)
    family = open_family(folder, cfg.model.family)
    model = skeleton(type(family), family.config, DTYPES[cfg.model.dtype])
    weights = read_weights(folder) if has_weights(folder) else None
    unused = check_fit(folder, model, weights) if weights else ()
    parts = family.parts(model)
    size = sizes(family, model, cfg, zero, pictures, ranks)
    return Report(
        path=str(folder),
        family=family.name,
        model_type=family.config.model_type,
        parts=_counts(parts),
        parameters=_count(model.parameters()),
        tied=any(p is family.head(model).weight for p in parts["language"].parameters()),
        files=dict(weights.files) if weights else None,
        dtypes=dict(weights.values) if weights else None,
        unused=unused,
        layers=len(family.decoder_layers(model)),
        context=family.context,
        chat_template=chat_template_file(folder) or "",
        text_prompt=size.text_prompt,
        pictures=size.pictures,
        special=_special(family),
        packs=family.packs_trees,
        run=run_line(cfg, zero, ranks, source),
        trained=size.load.trained,
        estimate=size.estimate(),
        missing=None if weights else f"{folder} has no weights: copy its safetensors files",
    )


def read_zero(cfg: RunConfig) -> mem.Zero:
    """The memory settings of the DeepSpeed JSON. Raises `ConfigError`."""
    ds = read_deepspeed(cfg.deepspeed)
    zero = ds["zero_optimization"]
    adds_up_in = ds.get("data_types", {"grad_accum_dtype": "fp32"}).get("grad_accum_dtype")
    return mem.Zero(
        stage=zero["stage"],
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_param=zero.get("offload_param", {}).get("device", "none") != "none",
        gradient_bytes=4 if adds_up_in == "fp32" else None,
        bucket=int(zero.get("reduce_bucket_size", 5e8)) if zero.get("contiguous_gradients", True) else 0,
        buckets=2 if zero["stage"] < 3 and zero.get("overlap_comm") else 1,
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
    )


def run_line(cfg: RunConfig, zero: mem.Zero, ranks: int, source: str) -> str:
    """A run in few words. source: its DeepSpeed JSON."""
    named = f"ZeRO-{zero.stage}{f' of {source}' if source else ''}"
    return f"method {cfg.method}, {cfg.model.dtype}, {named}, {ranks} GPU{'s' if ranks > 1 else ''}"


# --- the model ----------


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())


def _counts(parts: dict[str, nn.Module]) -> dict[str, int]:
    """Parameters by part; a shared tensor belongs to the first part that holds it."""
    counts, seen = {}, set[int]()
    for name, part in parts.items():
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        counts[name] = _count(own)
    return counts


def decoder_sizes(family: Family, model: Any) -> mem.Decoder:
    """Sizes of a model, which may be on the meta device."""
    config = family.config.get_text_config()
    layers = family.decoder_layers(model)
    heads, width = config.num_attention_heads, head_width(config)
    weights = [getattr(module, "weight", None) for module in layers[0].modules()]
    return mem.Decoder(
        layers=len(layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        query=heads * width,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * width,
        vocab=family.vocab_size,
        norms=sum(weight is not None and weight.shape == (config.hidden_size,) for weight in weights),
        sliding=list(getattr(config, "layer_types", None) or ()).count("sliding_attention"),
        window=getattr(config, "sliding_window", None) or 0,
    )


def _tower(
    family: Family, model: nn.Module, seen: Sequence[Picture], pictures: Sequence[Image.Image]
) -> mem.Tower | None:
    """Sizes of the vision tower, with the patches of the picture that has most tokens."""
    vision = family.image_parts(model).get("vision")
    if vision is None:
        return None
    layers = max((m for m in vision.modules() if isinstance(m, nn.ModuleList)), key=len)
    linears = [m for m in layers[0].modules() if isinstance(m, nn.Linear)]
    most = max(range(len(seen)), key=lambda i: seen[i].tokens)
    picture = pictures[most].resize(seen[most].resized or seen[most].size)
    convolutions = [m for m in vision.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    patches = seen[most].tokens
    if convolutions:  # values of the picture's tensor by those of one patch of the first convolution
        values = family.encode(QUESTION, [picture]).pixels[family.pixel_keys[0]].numel()
        patches = values // convolutions[0].weight[0].numel()
    return mem.Tower(
        layers=len(layers),
        hidden=linears[0].in_features,
        width=sum(linear.in_features + linear.out_features for linear in linears),
        patches=patches,
    )


# --- prompts ----------


def _picture(family: Family, cfg: RunConfig, text: str, image: Image.Image) -> Picture:
    fitted = fit_pixels(image, cfg.model.max_pixels)
    try:
        prompt = encode_turn(family, text, [fitted], cfg.prompt)
    except Exception as error:  # an edge: errors of a processor, such as for a picture that is far too thin
        size = f"{fitted.width}x{fitted.height}"
        raise ModelError(f"{family.source}: a picture of {size}: {encoding_error(error)}") from error
    return Picture(
        size=image.size,
        resized=fitted.size if fitted is not image else None,
        tokens=int((prompt.input_ids == family.config.image_token_id).sum()),
        prompt=len(prompt),
    )


def _special(family: Family) -> dict[str, str]:
    def named(*ids: int) -> str:
        return ", ".join(f"{family.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids)

    image = {"image": named(family.config.image_token_id)} if IMAGE in family.modalities else {}
    return {
        **image,
        "end of turn": named(family.end_of_turn),
        "stops": named(*family.stop_ids),
        "padding": named(family.pad_id),
        "never sampled": f"{len(family.forbidden_ids)} tokens",
    }


# --- the run ----------


def sizes(
    family: Family, model: nn.Module, cfg: RunConfig, zero: mem.Zero, pictures: Sequence[Image.Image], ranks: int
) -> Sizes:
    """Inputs of the estimate for a run of `cfg` on `ranks` GPUs with such pictures (none: `SIZES`). The model may be on
    the meta device. Raises `ModelError` and `ConfigError`."""
    pictures = pictures or [Image.new("RGB", size, "white") for size in SIZES]
    check_context(family, cfg.prompt, cfg.longest_reply)
    text = cfg.prompt.template.replace("{flag}", cfg.prompt.answer_flag).replace("{question}", QUESTION)
    seen = [_picture(family, cfg, text, image) for image in pictures] if IMAGE in family.modalities else []
    text_prompt = len(encode_turn(family, text, (), cfg.prompt))
    rows = -(-cfg.rollout.prompts_per_step // ranks) * cfg.rollout.group_size if cfg.method != "sft" else 0
    evaluated = -(-cfg.run.eval_records // ranks) if cfg.data.eval else 0
    prompt = max([text_prompt, *(p.prompt for p in seen)])
    return Sizes(
        load=_load(family, model, cfg, ranks, prompt, rows, evaluated),
        zero=zero,
        decoder=decoder_sizes(family, model),
        tower=_tower(family, model, seen, pictures),
        rollouts=rows,
        evaluated=evaluated,
        pictures=tuple(seen),
        text_prompt=text_prompt,
    )


def _load(
    family: Family, model: nn.Module, cfg: RunConfig, ranks: int, prompt: int, rows: int, evaluated: int
) -> mem.Load:
    parts = family.parts(model)
    lora = cfg.model.lora
    # a tensor shared with a trained part is trained
    trains = {id(p): p for name, part in parts.items() if name not in cfg.model.freeze for p in part.parameters()}
    linears = adapted_linears(family, model, lora) if lora else []
    added = mem.adapters(linears, lora.r) if lora else 0
    sees = bool({id(p) for part in family.image_parts(model).values() for p in part.parameters()} & trains.keys())
    # the estimate is for a GPU, also when it is made on a CPU
    width = head_width(family.config.get_text_config())
    _, packed = resolve_attention(
        cfg.model.attention, cfg.model.packed_attention, cfg.model.dtype, cuda=True, width=width
    )
    shares = engine_class(cfg.rollout.engine, family) is SharedPrefixEngine
    return mem.Load(
        ranks=ranks,
        value_bytes=DTYPES[cfg.model.dtype].itemsize,
        parameters=_count(model.parameters()) + added,
        trained=added if lora else _count(trains.values()),
        token_budget=cfg.train.token_budget,
        logits_budget_mb=cfg.train.logits_budget_mb,
        rows=min(rows, cfg.rollout.batch_size),
        prompt=prompt,
        reply=cfg.rollout.max_new_tokens,
        evaluated=min(evaluated, cfg.rollout.batch_size),
        adapters=added,
        layer=max(_count(layer.parameters()) for layer in family.decoder_layers(model)),
        largest=0 if lora else max((p.numel() for p in trains.values()), default=0),
        adapted=max((outputs * inputs for outputs, inputs in linears), default=0),
        offload=cfg.rollout.offload,
        checkpointing=cfg.model.gradient_checkpointing,
        dense_mask=packed == "sdpa",
        trains_head=not lora and id(family.head(model).weight) in trains,
        trains_tower=lora.vision if lora else sees,
        reference=cfg.objective.beta.peak > 0 and not lora,
        prompt_columns=column_bucket(prompt) if shares else 0,
        reply_columns=reply_bucket(cfg.rollout.max_new_tokens) if shares else 0,
        group=cfg.rollout.group_size,
        prompts=-(-rows // cfg.rollout.group_size),
        prefilled=PREFILL_TOKENS,
    )


def adapted_linears(family: Family, model: nn.Module, lora: LoraConfig) -> list[tuple[int, int]]:
    """Shapes [out, in] of the Linears that `model.lora` gives an adapter. Raises `ConfigError`."""
    linears = [model.get_submodule(name) for name in matching_linears(family, model, lora)]
    return [(linear.out_features, linear.in_features) for linear in linears]  # type: ignore[misc]
