"""Run configuration: what can be set, its defaults, and how a YAML plus `key=value` overrides becomes a `RunConfig`.

    cfg = load_config("configs/quickstart.yaml", ["optim.lr=1e-4", "method=grpo"])

Everything is checked before a model loads; a mistake is one `ConfigError` line that names the key, the nearest valid
key and the allowed values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, model_validator

from dyme.data import SourceConfig
from dyme.methods import Method
from dyme.settings.errors import ConfigError, explain
from dyme.settings.evaluation import EvaluateConfig
from dyme.settings.judge import JudgeConfig
from dyme.settings.lora import LoraConfig
from dyme.settings.numbers import Fraction, PositiveInt, UpToMillion, UpToThousand
from dyme.settings.objective import MemorizeConfig, ObjectiveConfig
from dyme.settings.optim import OptimConfig, Part
from dyme.settings.paths import UserPath
from dyme.settings.prompt import PromptConfig
from dyme.settings.rewards import RewardConfig
from dyme.settings.rollout import RolloutConfig
from dyme.settings.run import RunSettings, TrainConfig
from dyme.settings.schema import Schema
from dyme.settings.selector import SelectorConfig
from dyme.settings.supervision import SupervisionConfig
from dyme.settings.yaml_text import YamlError, read_yaml


class FromScratchConfig(Schema):
    """A tiny model of the family, with a tokenizer trained on the run's own texts."""

    hidden_size: UpToMillion = 128
    """Width of the language model."""
    layers: UpToThousand = 4
    """Decoder layers."""
    heads: UpToThousand = 4
    """Attention heads (language model and vision tower)."""
    vision_hidden_size: UpToMillion = 96
    """Width of the vision tower."""
    vision_layers: UpToThousand = 2
    """Vision encoder layers."""
    image_size: UpToThousand = 32
    """Side in pixels to which every picture is resized."""
    patch_size: UpToThousand = 4
    """Side of one vision patch in pixels."""
    scale_factor: UpToThousand = 2
    """Pixel shuffle: scale_factor**2 patches become one image token."""
    vocab_size: UpToMillion = 512
    """Upper bound of the trained byte-level BPE vocabulary, special tokens included."""
    tokenizer_sources: tuple[SourceConfig, ...] = ()
    """More sources whose texts the tokenizer is trained on, besides data.train (e.g. those of a later stage)."""
    tokenizer_texts: tuple[str, ...] = ()
    """More texts the tokenizer must know, e.g. the prompt template of a later stage."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> FromScratchConfig:
        where = "model.from_scratch"
        for name in ("hidden_size", "vision_hidden_size"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{where}.{name}={getattr(self, name)} must be a multiple of heads={self.heads}")
        width = self.hidden_size // self.heads
        if width % 2:
            raise ValueError(f"{where}.hidden_size / heads = {width} must be even (rotary positions)")
        if self.image_size % (self.patch_size * self.scale_factor):
            raise ValueError(
                f"{where}.image_size={self.image_size} must be a multiple of patch_size * scale_factor = "
                f"{self.patch_size * self.scale_factor}"
            )
        return self


class ModelConfig(Schema):
    """Which model is trained, and which of its parts."""

    path: str | None = None
    """Local Hugging Face checkpoint folder of a supported family."""
    from_scratch: FromScratchConfig | None = None
    """Build a tiny random model instead of loading one."""
    family: str = "auto"
    """Name of a family in dyme/families; `auto` reads it from the checkpoint (from_scratch: the default VLM)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Compute precision; bf16 keeps fp32 master weights in the optimizer."""
    freeze: tuple[Part, ...] = ()
    """Parts that are not trained: vision, connector, language, head (as far as the family has them)."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    max_pixels: PositiveInt | None = None
    """Larger pictures are resized to this many pixels (width x height); without it the processor's own limits hold."""
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    """Of rollouts, evaluation and vision towers; auto: flash_attention_2 where flash-attn is installed, on a GPU in
    bf16, else sdpa."""
    packed_attention: Literal["auto", "sdpa", "flex_attention"] = "auto"
    """Of the language model in training, whose packed groups need a mask; auto: flex_attention on a GPU (heads of
    16 values and more), else sdpa."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if (self.path is None) == (self.from_scratch is None):
            raise ValueError("set exactly one of model.path (a local checkpoint) and model.from_scratch")
        if self.attention == "flash_attention_2" and self.dtype == "fp32":
            raise ValueError(
                "model.attention=flash_attention_2 has no fp32: set model.dtype=bf16, or model.attention=auto"
            )
        if self.lora:
            self.lora.check_freeze(self.freeze)
        return self


class DataConfig(Schema):
    """Where records come from."""

    train: SourceConfig
    """Records to train on."""
    eval: SourceConfig | None = None
    """Held-out records; without them there is no evaluation."""
    shuffle: bool = True
    """Every epoch in an order of its own; false keeps the order of the source (a curriculum)."""
    max_bad_fraction: Fraction = 0.01
    """Bad rows are skipped and counted up to this fraction, at loading and in the last 20 steps (see docs/recovery.md);
    beyond it the run stops."""


class RunConfig(Schema):
    """One run: `deepspeed launchers/train.py --config FILE [key.sub=value ...]`."""

    method: Method = "dyme"
    """dyme: selector per group. grpo: always explore. sft: always memorize, no rollouts. two_stage: sft, then grpo.
    interleaved: sft and grpo steps in turn. progressive: ever fewer sft steps. mixed: half of each step's groups."""
    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    judge: JudgeConfig = JudgeConfig()
    selector: SelectorConfig = SelectorConfig()
    memorize: MemorizeConfig = MemorizeConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    run: RunSettings = RunSettings()
    evaluate: EvaluateConfig = EvaluateConfig()
    deepspeed: UserPath = "ds_configs/zero3.json"
    """DeepSpeed JSON, a file or the name of one of the package's (zero2); batch size, accumulation, clipping and
    precision come from this configuration."""

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        if self.prompt.style == "direct" and self.method != "sft":
            raise ValueError(
                f"prompt.style=direct has no thinking to explore: method={self.method} needs prompt.style=think"
            )
        if self.method == "mixed" and self.rollout.prompts_per_step < 2:
            raise ValueError("method=mixed splits the groups of a step: rollout.prompts_per_step must be 2 at least")
        if self.objective.preset and {"surrogate", "normalization"} & self.objective.model_fields_set:
            raise ValueError(
                "objective.preset replaces objective.surrogate and objective.normalization: set one or the other"
            )
        if self.objective.beta.peak and self.method not in ("dyme", "grpo", "mixed"):
            beta = self.objective.model_dump()["beta"]
            raise ValueError(
                f"objective.beta={beta} needs explored rows of one policy, method={self.method} has "
                "none: set it to 0, or run the second stage as method=grpo from the first one's export"
            )
        if self.supervision.asks_judge and not self.judge.endpoints:
            raise ValueError(
                f"supervision.{self.supervision.asks_judge} asks a judge, and judge.endpoints is empty: name a server "
                "there (url, model), or set it to rules or lexical"
            )
        if self.run.eval_every and self.data.eval is None:
            raise ValueError("run.eval_every needs data.eval")
        if self.memorize.on_missing_trace == "skip" and self.prompt.style == "direct":
            raise ValueError("memorize.on_missing_trace=skip leaves nothing to train with prompt.style=direct")
        return self

    @property
    def longest_reply(self) -> int:
        """Tokens that the model's context must hold after a prompt of this run: 1 where it writes no replies at all."""
        return self.rollout.max_new_tokens if self.method != "sft" or self.data.eval else 1


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads a run YAML, applies dotted `key=value` overrides (values are YAML), checks it. Raises `ConfigError`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file; see configs/ for examples")
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    for item in overrides or []:
        _override(tree, item)
    if tree.get("run") is None:
        tree["run"] = {}
    if isinstance(tree["run"], dict) and not tree["run"].get("dir"):
        tree["run"]["dir"] = str(Path("runs") / path.stem)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RunConfig)}") from None


def dump_config(cfg: RunConfig) -> str:
    """The resolved configuration as YAML; loading it again gives an equal `RunConfig`."""
    return yaml.safe_dump(cfg.model_dump(mode="json", exclude_none=True, exclude=_replaced(cfg)), sort_keys=False)


def _replaced(cfg: RunConfig) -> Any:
    """What a preset decides: written out, it would count as set by the user."""
    unset = {"epsilon_low", "epsilon_high"} - cfg.objective.model_fields_set
    return {"objective": {"surrogate", "normalization"} | unset} if cfg.objective.preset else None


def changed_keys(before: str, after: str) -> list[str]:
    """Dotted keys whose values differ between two configurations as `dump_config` writes them."""
    return [key for key, _, _ in changed_leaves(before, after)]


def changed_leaves(before: str, after: str) -> list[tuple[str, Any, Any]]:
    """The keys of `changed_keys` with the value before and after, None where there is none."""
    old, new = (_leaves(yaml.safe_load(text)) for text in (before, after))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [(key, old.get(key), new.get(key)) for key in keys]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, sub in tree.items() for key, value in _leaves(sub, f"{prefix}{name}.").items()}


def _override(tree: dict[str, Any], item: str) -> None:
    key, sep, text = item.partition("=")
    if not sep or not all(key.split(".")):
        raise ConfigError(f"override '{item}': write key.sub=value")
    try:
        value = read_yaml(text, key)
    except YamlError as error:
        raise ConfigError(f"override '{item[:80]}': {error}") from None
    *parents, leaf = key.split(".")  # YAML 1.1 reads 1e-4 as text; pydantic makes it a number where one is wanted
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override '{item}': '{name}' is a plain value and has no keys")
        node = child
    node[leaf] = value
