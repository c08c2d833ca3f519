"""SmolVLM v1: Idefics3 classes, pictures split into tiles of 16 x 16."""

from __future__ import annotations

from typing import Any

from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize, train_tokenizer

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TAGS = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]


def tokenizer() -> Any:
    return train_tokenizer(
        [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *TAGS,
        ],
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        bos="<|im_start|>",
        named={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        chat_template=CHAT_TEMPLATE,
    )


def fields(tokens: Any, text: dict[str, Any], vision: dict[str, Any], scale_factor: int) -> dict[str, Any]:
    """Configuration of Idefics3 and of SmolVLM2, which share their layout."""
    return dict(
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
        bos_token_id=tokens.bos_token_id,
        scale_factor=scale_factor,
        text_config=dict(
            model_type="llama",
            pad_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
            bos_token_id=tokens.bos_token_id,
            **text,
        ),
        vision_config=vision,
    )


TEXT = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=4096,
)
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
)


PUBLISHED_TEXT = dict(
    vocab_size=49280,
    hidden_size=960,
    intermediate_size=2560,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=False,
)
"""SmolLM2-360M as the 500M models hold it: 128 tokens more than alone, and a head of its own."""
PUBLISHED_VISION = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=512,
    patch_size=16,
)
"""SigLIP-B/16."""


def processor_files(kind: str, side: int = 16, longest: int = 32, image_seq_len: int = 4) -> dict[str, Any]:
    """kind: Idefics3 or SmolVLM. Pictures of up to `longest` pixels a side, in tiles of `side` and one of the whole;
    the defaults are those of the tiny models."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": f"{kind}ImageProcessor",
            "processor_class": f"{kind}Processor",
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": side},
            "size": {"longest_edge": longest},
            "resample": 1,
            "rescale_factor": 1 / 255,
        },
        "processor_config.json": {"image_seq_len": image_seq_len, "processor_class": f"{kind}Processor"},
    }


def tiny() -> Tiny:
    tokens = tokenizer()
    config = Idefics3Config(  # type: ignore[call-arg]
        **fields(tokens, dict(**TEXT, vocab_size=len(tokens) + 3), VISION, scale_factor=2), tie_word_embeddings=False
    )
    return Tiny(randomize(Idefics3ForConditionalGeneration(config)), tokens, processor_files("Idefics3"))


def published() -> Tiny:
    """SmolVLM-500M-Instruct (v1)."""
    tokens = tokenizer()
    config = Idefics3Config(  # type: ignore[call-arg]
        **fields(tokens, PUBLISHED_TEXT, PUBLISHED_VISION, scale_factor=4), tie_word_embeddings=False
    )
    return Tiny(config, tokens, processor_files("Idefics3", 512, 2048, 64))


CHECKPOINTS = {"smolvlm-v1": tiny}
SHAPES = {"smolvlm-500m": published}
