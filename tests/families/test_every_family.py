"""What the trainer relies on, for tiny checkpoints of every family. A `feature` is a column of docs/models.md."""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from dyme.batching.packing import pack
from dyme.families import IMAGE, ModelError, Prompt, PromptError, load_family
from dyme.rollout.noise import row_key
from dyme.rollout.types import RolloutRequest, Sampling
from tests.helpers.checkpoints import makers
from tests.helpers.generating import generate
from tests.helpers.groups import NONE, SIZES, groups, picture, sees
from tests.helpers.packed import assert_close, gradients, packed_logprobs, separate_logprobs

QUESTION = "What is the value of bar one?"
REPLIES = ["4", "the bar is 12.5 %\nAnswer: 12.5", "Ünïcode ☃ and <b>more</b>", "a  b"]


def need_images(family) -> None:
    if not sees(family):
        pytest.skip("text-only")


def template_ids(family, messages, **options) -> list[int]:
    out = family.processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    ids = out["input_ids"]
    return list(ids[0] if isinstance(ids[0], list) else ids)


# --- loading ----------


@pytest.mark.feature("loads")
def test_family_and_parts(opened, request):
    family, model = opened
    name = request.node.callspec.params["opened"]
    assert family.name == makers()[name][0]
    parts = family.parts(model)
    assert set(parts) == ({"vision", "connector"} if sees(family) else set()) | {"language", "head"}
    assert {id(p) for part in parts.values() for p in part.parameters()} == {id(p) for p in model.parameters()}
    embedding = id(model.get_input_embeddings().weight)
    held = [{id(p) for p in part.parameters()} - {embedding} for part in parts.values()]
    assert sum(map(len, held)) == len(set().union(*held)), "a parameter is in two parts"
    assert len(family.decoder_layers(model)) == model.config.get_text_config().num_hidden_layers
    assert family.head(model).weight.shape[0] == family.vocab_size


# --- prompts ----------


def contents(family) -> list[tuple[str, list[Image.Image]]]:
    held: list[tuple[str, list[Image.Image]]] = [(QUESTION, []), ("a", [])]
    if sees(family):
        held += [(QUESTION, [picture(i, size)]) for i, size in enumerate(SIZES)]
    return held


@pytest.mark.feature("chat template")
def test_prompts_are_the_processors_chat_template(opened):
    family, _ = opened
    for text, images in contents(family):
        prompt = family.encode(text, images)
        assert prompt.input_ids.tolist() == template_ids(
            family, family.messages(text, images), add_generation_prompt=True
        )
        assert prompt.modalities == (frozenset({IMAGE}) if images else NONE)
        family.check_placeholders(prompt)


@pytest.mark.feature("multi-image")
def test_families_of_threads_encode_the_same(opened):
    family, _ = opened
    asked = contents(family) * 4
    expected = [family.encode(text, images) for text, images in asked]
    with ThreadPoolExecutor(2) as threads:
        parts = [threads.submit(lambda own: [own.encode(*one) for one in asked], family.apart()) for _ in range(2)]
    for made in (part.result() for part in parts):
        for one, other in zip(expected, made, strict=True):
            assert torch.equal(one.input_ids, other.input_ids) and one.pixels.keys() == other.pixels.keys()
            assert all(torch.equal(one.pixels[key], other.pixels[key]) for key in one.pixels)


def test_several_pictures(opened):
    family, model = opened
    need_images(family)
    two = [picture(1), picture(2, (24, 24))]
    before = family.encode(QUESTION, two)
    assert before.input_ids.tolist() == template_ids(family, family.messages(QUESTION, two), add_generation_prompt=True)
    one = family.encode(QUESTION, two[:1])
    count = lambda prompt: int((prompt.input_ids == family.config.image_token_id).sum())  # noqa: E731
    # not always more than of one: models that tile single pictures only
    assert count(before) != count(one) and min(count(before), count(one)) > 0
    text = "First <image> then <image> done"
    placed = family.encode(text, two)
    assert placed.input_ids.tolist() == template_ids(family, family.messages(text, two), add_generation_prompt=True)
    assert count(placed) == count(before)
    with pytest.raises(PromptError, match="3 image placeholders '<image>' in the question but 2 images"):
        family.encode("<image> <image> <image>", two)
    with torch.no_grad():
        alone = separate_logprobs(family, model, before, [70, 71])
        other = separate_logprobs(family, model, family.encode(QUESTION, two[::-1]), [70, 71])
    assert torch.isfinite(alone).all() and not torch.allclose(alone, other)


@pytest.mark.feature("chat template")
@pytest.mark.parametrize("reply", REPLIES)
def test_prompt_and_reply_are_the_full_conversation(opened, reply):
    """What is memorized is what the chat template would have written, token for token, behind its own generation
    prompt (LLaVA-OneVision's begins a finished reply with a space more)."""
    family, _ = opened
    images = [picture(0)] if sees(family) else []
    messages = family.messages(QUESTION, images)
    text = [{"type": "text", "text": reply}] if isinstance(messages[0]["content"], list) else reply
    full = template_ids(family, [*messages, {"role": "assistant", "content": text}])
    ours = [*family.encode(QUESTION, images).input_ids.tolist(), *family.encode_reply(reply)]
    if family.name == "llava_onevision":
        finished, opening = (family.tokenizer(f"<|im_start|>assistant{end}")["input_ids"] for end in (" \n", "\n"))
        at = len(full) - len(family.encode_reply(reply)) - len(finished)
        assert full[at : at + len(finished)] == finished
        full = [*full[:at], *opening, *full[at + len(finished) :]]
    assert full[: len(ours)] == ours
    assert family.tokenizer.decode(full[len(ours) :]).strip() == ""
    assert not set(family.encode_reply(reply)) & set(family.forbidden_ids)
    assert family.decode(family.encode_reply(reply)) == reply.strip()


def test_the_models_own_image_tokens_in_a_question(opened):
    family, _ = opened
    need_images(family)
    expected = (family.encode("What is it?", [picture(0)]).input_ids == family.config.image_token_id).sum()
    for token in {family.placeholder, *family.image_texts} - {"<image>"}:
        ids = family.encode(f"What is {token}?", [picture(0)]).input_ids
        assert (ids == family.config.image_token_id).sum() == expected
        assert f"What is {token}?" in family.tokenizer.decode(ids)
    assert not set(family.encode_reply(f"a {family.placeholder} b")[:-1]) & {family.config.image_token_id}


def test_a_processor_that_does_not_fit(opened):
    family, _ = opened
    need_images(family)
    prompt = family.encode(QUESTION, [picture(0)])
    at = int((prompt.input_ids == family.config.image_token_id).nonzero()[0])
    cut = Prompt(torch.cat([prompt.input_ids[:at], prompt.input_ids[at + 1 :]]), prompt.pixels)
    with pytest.raises(PromptError, match=r"\d+ image placeholder tokens but \d+ image features: "):
        family.check_placeholders(cut)


# --- packed groups ----------


@pytest.mark.feature("packed groups")
def test_trees_equal_separate_rows(opened):
    """Log-probabilities and every parameter's gradient in float64 (norms and rotary positions run in float32)."""
    family, model = opened
    model = copy.deepcopy(model).double()
    sequences = groups(family)
    if not family.packs_trees:
        pytest.skip("trains padded rows")
    together = packed_logprobs(family, model, pack(family, sequences, NONE))
    apart = torch.cat([separate_logprobs(family, model, p, b) for p, branches in sequences for b in branches])
    assert (together - apart).abs().max() < 1e-6
    weights = torch.linspace(-1.0, 1.0, len(together), dtype=torch.float64)
    expected = gradients(model, (weights * apart).sum())
    assert_close(gradients(model, (weights * together).sum()), expected)
    causal = pack(family, [(p, [[t for b in branches for t in b]]) for p, branches in sequences], NONE)
    assert (packed_logprobs(family, model, causal) - apart).abs().max() > 1e-3, "the check cannot fail"


@pytest.mark.feature("packed groups")
def test_an_anchor_runs_every_module_and_changes_nothing(opened):
    """The first micro-batch of a step has every parameter in its graph, also when its prompts have no pictures, or
    several."""
    family, model = opened
    sequences = groups(family)
    everything = set(gradients(model, packed_logprobs(family, model, pack(family, sequences, NONE)).sum()))
    for held in ([], sequences[1:2], sequences[3:]):
        grads = gradients(model, packed_logprobs(family, model, pack(family, held, family.modalities)).sum())
        assert set(grads) == everything
        assert all(torch.isfinite(g).all() for g in grads.values())
    alone = packed_logprobs(family, model, pack(family, sequences[1:2], NONE))
    anchored = packed_logprobs(family, model, pack(family, sequences[1:2], family.modalities))
    assert (alone - anchored).abs().max() < 1e-5


# --- rollouts ----------


@pytest.mark.feature("rollout")
def test_rollouts_are_the_policys_own_samples(opened):
    """Greedy tokens of a left-padded batch are the arg-max of each row alone, token by token."""
    family, model = opened
    prompts = [prompt for prompt, _ in groups(family)]
    banned = torch.tensor(family.forbidden_ids)
    for _ in range(2):  # models that keep positions between calls show it in the second one
        rollouts = generate(family, model, [RolloutRequest(p) for p in prompts], Sampling(6, temperature=0.0))
    for prompt, rollout in zip(prompts, rollouts):
        tokens = list(rollout.tokens)
        ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])[None]
        with torch.no_grad():
            more = family.generate_inputs([prompt], ids)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0]
        best = logits[len(prompt) - 1 : -1].index_fill(1, banned, -torch.inf).argmax(-1).tolist()
        assert tokens == best
        packed = pack(family, [(prompt, [tokens])], NONE)
        assert packed.input_ids[0].tolist() == ids[0].tolist(), "what trains is what was generated"


@pytest.mark.feature("rollout")
def test_image_tokens_are_never_sampled(opened):
    family, model = opened
    config = family.config
    named = [getattr(config, n, None) for n in ("image_token_id", "video_token_id", "image_token_index")]
    tokens = {t for t in named if t is not None} | {family.tokenizer.pad_token_id}
    assert tokens - set(family.stop_ids) <= set(family.forbidden_ids)
    assert not set(family.stop_ids) & set(family.forbidden_ids)
    assert set(range(len(family.tokenizer), family.vocab_size)) <= set(family.forbidden_ids)
    unaware = type(family)(family.processor, config)  # as where the tokenizer takes all of them for text
    unaware.__dict__["_special_ids"] = frozenset()
    added = family.tokenizer.get_added_vocab()
    assert {added[t] for t in (family.placeholder, *family.image_texts) if t in added} <= set(unaware.forbidden_ids)
    loud = copy.deepcopy(model)
    head = family.head(loud)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    head.bias.data[list(tokens)] = 1e4
    prompts = [prompt for prompt, _ in groups(family)]
    rows = [RolloutRequest(p, row_key(0, 0, str(i), 0)) for i, p in enumerate(prompts)]
    for rollout in generate(family, loud, rows, Sampling(5)):
        assert not set(rollout.tokens) & (tokens - set(family.stop_ids))


@pytest.mark.feature("rollout")
def test_the_end_of_turn_stops(opened):
    family, model = opened
    assert family.end_of_turn in family.stop_ids and family.tokenizer.eos_token_id in family.stop_ids
    assert family.encode_reply("x")[-1] == family.end_of_turn
    eager = copy.deepcopy(model)
    head = family.head(eager)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    head.bias.data[family.end_of_turn] = 1e4
    (rollout,) = generate(family, eager, [RolloutRequest(family.encode(QUESTION))], Sampling(5))
    assert rollout.tokens == (family.end_of_turn,) and not rollout.truncated


# --- exports ----------


@pytest.mark.feature("export")
def test_export_opens_in_plain_transformers(opened, tmp_path, checkpoint, request):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    family, model = opened
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for p in trained.parameters():
            p.mul_(1.01)
    trained.save_pretrained(tmp_path)
    family.export(tmp_path)
    kind = AutoModelForImageTextToText if sees(family) else AutoModelForCausalLM
    plain = kind.from_pretrained(tmp_path).eval()
    again, loaded = load_family(tmp_path)
    for prompt, _ in groups(family):
        ids = prompt.input_ids[None]
        with torch.no_grad():
            more = family.generate_inputs([prompt], ids)
            logits = [m(input_ids=ids, **more).logits for m in (trained, plain, loaded.eval())]
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    source = checkpoint(request.node.callspec.params["opened"])
    for file in source.iterdir():
        if not file.name.startswith(("model", "config", "generation")):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    assert again.encode_reply("a") == family.encode_reply("a")


def test_an_export_of_a_checkpoint_that_is_gone(checkpoint, tmp_path):
    """Else the exported folder would lack its processor without a word."""
    family, _ = load_family(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model is gone, so the export has no processor: put it back"):
        family.export(tmp_path)


def test_bf16(opened, checkpoint, request):
    folder = checkpoint(request.node.callspec.params["opened"])
    family, model = load_family(folder, dtype="bf16")
    assert model.dtype == torch.bfloat16
    sequences = groups(family)
    assert torch.isfinite(packed_logprobs(family, model.eval(), pack(family, sequences, NONE))).all()
