"""The trainer of docs/kernels.md trains as TRL's own does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.helpers.launching import ROOT

trl = pytest.importorskip("trl")

DOCS = ROOT / "docs" / "kernels.md"


def fused_trainer() -> Any:
    [snippet] = re.findall(r"```python\n(import torch\nfrom trl.*?)```", DOCS.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(compile(snippet, "docs/kernels.md", "exec"), names)
    return names["FusedLossTrainer"]


def train(trainer: Any, folder: Path) -> tuple[list[torch.Tensor], list[float]]:
    """Three steps on a tiny model: weights, and the loss of every step."""
    torch.manual_seed(0)
    vocabulary = {**{f"t{i}": i for i in range(40)}, "<pad>": 40, "<eos>": 41}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(
        vocab_size=42, **sizes, num_key_value_heads=4, pad_token_id=40, eos_token_id=41, bos_token_id=0
    )
    model = LlamaForCausalLM(config)
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        num_iterations=2,
        max_completion_length=6,
        max_steps=3,
        learning_rate=1e-2,
        temperature=0.9,
        loss_type="grpo",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=1,
    )
    made = trainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(text.count("t1")) for text in completions],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"t{i} t{i + 1}"} for i in range(8)]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )
    made.train()
    return list(model.parameters()), [float(line["loss"]) for line in made.state.log_history if "loss" in line]


def test_the_fused_trainer_of_the_docs_trains_as_trls_own(tmp_path):
    weights, losses = train(trl.GRPOTrainer, tmp_path / "trl")
    ours, our_losses = train(fused_trainer(), tmp_path / "ours")
    assert len(losses) == 3 and abs(losses[1]) > 0.01  # the second step is off-policy
    assert our_losses == pytest.approx(losses, abs=1e-6)
    for mine, theirs in zip(ours, weights, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
