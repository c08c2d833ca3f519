"""SmolVLM v1: Idefics3 classes, pictures split into tiles of 16 x 16."""

from __future__ import annotations

from typing import Any

from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from checkpoints.common import Tiny, randomize, train_tokenizer

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


def processor_files(kind: str) -> dict[str, Any]:
    """kind: Idefics3 or SmolVLM. Pictures of up to 32 pixels a side, in tiles of 16 and one of the whole."""
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
            "max_image_size": {"longest_edge": 16},
            "size": {"longest_edge": 32},
            "resample": 1,
            "rescale_factor": 1 / 255,
        },
        "processor_config.json": {"image_seq_len": 4, "processor_class": f"{kind}Processor"},
    }


def tiny() -> Tiny:
    tokens = tokenizer()
    config = Idefics3Config(  # type: ignore[call-arg]
        **fields(tokens, dict(**TEXT, vocab_size=len(tokens) + 3), VISION, scale_factor=2), tie_word_embeddings=False
    )
    return Tiny(randomize(Idefics3ForConditionalGeneration(config)), tokens, processor_files("Idefics3"))


CHECKPOINTS = {"smolvlm-v1": tiny}
SHAPES: dict[str, Any] = {}
