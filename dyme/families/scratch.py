"""Tokenizer of a model built from scratch: byte-level BPE trained on the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dyme.families.base import ModelError

PAD, EOS, BOS, END_OF_TURN = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<end_of_utterance>"

FREQUENT = 100  # repetitions that make the words of a text whole tokens


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, more_special: Sequence[str] = (), kept: str | None = None
) -> PreTrainedTokenizerFast:
    """A lossless tokenizer: words, single digits, and bytes for unseen text. The same texts give the same tokenizer.

    `vocab_size` is an upper bound and must leave room for 256 bytes and the special tokens. `kept`: JSON of a tokenizer
    that was trained before (`kept_tokenizer`); then nothing is trained.
    """
    special = [PAD, EOS, BOS, END_OF_TURN, *more_special]
    if vocab_size < 256 + len(special):
        raise ModelError(f"model.from_scratch.vocab_size must be at least {256 + len(special)}, got {vocab_size}")
    if kept is not None:
        return _wrapped(Tokenizer.from_str(kept), more_special)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, more_special)


def kept_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """A tokenizer that `train_tokenizer` made, as JSON for its `kept`."""
    return tokenizer.backend_tokenizer.to_str()


def _wrapped(tokenizer: Tokenizer, more_special: Sequence[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        bos_token=BOS,
        padding_side="left",
        extra_special_tokens=[EOS, END_OF_TURN, *more_special],
        model_max_length=1_000_000,
    )
