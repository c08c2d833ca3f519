"""Records as user turns and replies, and what happens to a record whose picture cannot be read."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dyme import prompts, stages
from dyme.data import LazyImage, Record
from dyme.families import Prompt, PromptError
from dyme.prompts import PromptCache, fit_pixels, has_demonstration, prompt_text, reply_text
from dyme.rewards.compose import score
from dyme.sampler import step_batch
from dyme.settings.prompt import PromptConfig
from dyme.settings.rewards import RewardConfig

RECORD = Record(id="r1", question="How tall?", answers=("3", "three"), hint=" it is 3. \n")
THINK = PromptConfig(template="{question} End with '{flag}'.", answer_flag="Answer:")


def test_prompt_text():
    assert prompt_text(RECORD, THINK) == "How tall? End with 'Answer:'."
    assert prompt_text(RECORD, PromptConfig(style="direct", template="{question}")) == "How tall?"


def test_braces_in_a_question_are_text():
    record = replace(RECORD, question="What is {flag} in {question} or {x}?")
    assert prompt_text(record, PromptConfig(template="Q: {question} {flag}", answer_flag="A:")) == (
        "Q: What is {flag} in {question} or {x}? A:"
    )


def test_choices():
    record = replace(RECORD, answers=("cat",), choices=("dog", "cat", "cow"))
    assert prompt_text(record, PromptConfig(template="{question}")) == "How tall?\nOptions: (A) dog (B) cat (C) cow"
    config = PromptConfig(template="{question} now", choices_template=" [{choices}]")
    assert prompt_text(record, config) == "How tall? [(A) dog (B) cat (C) cow] now"


def test_reply_text():
    assert reply_text(RECORD, THINK, RECORD.hint) == "it is 3.\nAnswer: 3"
    assert reply_text(RECORD, PromptConfig(answer_flag="So:"), "a") == "a\nSo: 3"
    assert reply_text(RECORD, PromptConfig(style="direct"), RECORD.hint) == "3"


def test_a_trace_that_announces_an_answer_is_cut_there():
    assert reply_text(RECORD, THINK, "it is 3.\nanswer: 4 or so") == "it is 3.\nAnswer: 3"


@pytest.mark.parametrize(
    "trace",
    [
        None,
        "it is 3.",
        "it is 3.\n**Answer** : 4",
        "it is 3.\n### Answer: 4",
        "so answer：4, or\nANSWER: 5",
        "\u200bAns\u200bwer: 4",
        r"it is \boxed{4} or 5",
        "**",
    ],
)
@pytest.mark.parametrize(
    "answer", ["3", "Yes. It is one.", "a\nb", "# 3", "- 3", '"3"', "$3$", r"\boxed{3}", "2:35 P.M."]
)
@pytest.mark.parametrize("flag", ["Answer:", "Answer :", "answer："])
def test_a_demonstration_reads_back_right(trace, answer, flag):
    record, config = replace(RECORD, answers=(answer,)), PromptConfig(answer_flag=flag)
    for style in ("think", "direct"):
        reply = reply_text(record, config.model_copy(update={"style": style}), trace)
        scores = score([reply], [record], truncated=[False], config=RewardConfig(), flag=flag, style=style)
        assert (scores.format[0], scores.accuracy[0]) == (1.0, 1.0), reply


@pytest.mark.parametrize("trace", [None, "", "  \n ", "Answer: 7"])
def test_a_missing_trace_leaves_the_answer_alone(trace):
    assert reply_text(RECORD, THINK, trace) == "Answer: 3"


@pytest.mark.parametrize(
    ("hint", "on_missing", "style", "expected"),
    [
        ("why", "skip", "think", True),
        (None, "answer", "think", True),
        (None, "skip", "think", False),
        ("  ", "skip", "think", False),
        (None, "skip", "direct", True),
    ],
)
def test_has_reference(hint, on_missing, style, expected):
    assert has_demonstration(replace(RECORD, hint=hint), on_missing, style) is expected


class Family:
    """Encodes a text as its length; refuses the word 'bad'."""

    calls = 0

    def apart(self) -> Family:
        return self

    def encode(self, text: str, images: list[Image.Image]) -> Prompt:
        self.calls += 1
        if "bad" in text:
            raise PromptError("1 placeholder but 0 features")
        return Prompt(torch.arange(len(text)), {"pixel_values": torch.zeros(1)} if images else {})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def book(said) -> PromptCache:
    return PromptCache(Family(), PromptConfig(template="{question}"), said.append)  # type: ignore[arg-type]


def test_a_record_is_encoded_once_until_cleared(book, said):
    first = book.encode(RECORD)
    assert first is book.encode(RECORD) and len(first) == 9 and book.family.calls == 1
    book.clear()
    assert book.encode(RECORD) is not first and book.family.calls == 2 and not said and not book.failed


def test_images_are_loaded(book):
    record = replace(RECORD, images=(LazyImage(draw=lambda: Image.new("RGB", (4, 4))),))
    assert book.encode(record).modalities == {"image"} and book.encode(replace(RECORD, id="r2")).modalities == set()


def test_a_bad_image_is_none_and_reported_once(book, said, tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:300])
    broken, gone = (
        replace(RECORD, id=i, images=(LazyImage(path=p),)) for i, p in (("cut", path), ("gone", tmp_path / "no.png"))
    )
    for _ in range(2):
        assert book.encode(broken) is None and book.encode(gone) is None
        book.clear()
    assert len(said) == 2 and list(book.failed) == ["cut", "gone"]
    assert "record cut left out" in said[0] and "truncated" in said[0]
    assert "no such picture" in book.failed["gone"]


def test_whatever_a_processor_trips_over_costs_the_record_only(book, said, monkeypatch):
    def broken(text, images=()):
        raise ZeroDivisionError("1 x 0 picture")

    monkeypatch.setattr(book.family, "encode", broken)
    assert book.encode(RECORD) is None
    assert said == ["record r1 left out: ZeroDivisionError: 1 x 0 picture"]


def test_placeholder_mismatch_names_the_record(book, said):
    assert book.encode(replace(RECORD, id="p7", question="bad one")) is None
    assert said == ["record p7 left out: 1 placeholder but 0 features"]
    assert book.encode(RECORD) is not None  # the others go on


# --- prefetching ----------


class SlowFamily(Family):
    """Notes who encodes what; two calls at once are an error."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.busy = threading.Lock()

    def apart(self) -> SlowFamily:
        family = SlowFamily()
        family.seen = self.seen
        return family

    def encode(self, text: str, images: list[Image.Image]) -> Prompt:
        assert self.busy.acquire(blocking=False), "two calls of the processor at once"
        try:
            time.sleep(0.005)
            self.seen.append((text, threading.current_thread().name))
            return super().encode(text, images)
        finally:
            self.busy.release()


def records(*questions: str) -> list[Record]:
    return [replace(RECORD, id=f"id {q}", question=q) for q in questions]


@pytest.fixture(params=[1, 3])
def slow(said, request, monkeypatch) -> PromptCache:
    """With one thread that encodes ahead, and with three."""
    monkeypatch.setattr(prompts, "threads", lambda: request.param)
    return PromptCache(SlowFamily(), PromptConfig(template="{question}"), said.append)  # type: ignore[arg-type]


def test_prefetched_prompts_are_the_same_and_come_from_a_thread(slow):
    now, ahead = records("one", "three"), records("four", "fifteen")
    slow.prefetch(ahead)
    used = [slow.encode(record) for record in now]  # meanwhile the step goes on
    assert [len(p) for p in used] == [3, 5]
    slow.clear()
    assert len(slow.family.seen) == 4, "nothing runs in the background after clear"
    slow.advance()
    assert [len(slow.encode(record)) for record in ahead] == [4, 7]
    threads = dict(slow.family.seen)
    assert len(slow.family.seen) == 4 and threads["one"] == threads["three"] == threading.current_thread().name
    assert all(threads[name].startswith("prompts") for name in ("four", "fifteen"))
    slow.advance()
    assert slow.encode(ahead[0]) and len(slow.family.seen) == 5, "a turned page is forgotten"


def test_several_at_a_time_in_their_order(slow, said):
    asked = records("one", "bad", "three", "one", "fifteen")
    assert slow.encode(asked[2]) is slow.encode_all(asked)[2]
    made = slow.encode_all(asked)
    assert [p and len(p) for p in made] == [3, None, 5, 3, 7] and made[0] is made[3] and len(said) == 1
    assert len(slow.family.seen) == 4


def test_threads_share_the_cores_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert prompts.threads() == 8
    for ranks, expected in (("1", 8), ("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_SIZE", ranks)
        assert prompts.threads() == expected


def test_one_step_ahead_at_most(slow):
    slow.prefetch(records("one"))
    with pytest.raises(AssertionError):
        slow.prefetch(records("two"))


def test_failures_ahead_are_told_when_their_step_comes(slow, said):
    slow.prefetch(records("good", "bad one", "bad two"))
    slow.clear()
    assert not said and not slow.failed
    slow.advance()
    assert list(slow.failed) == ["id bad one", "id bad two"] and len(said) == 2 and "id bad one" in said[0]
    assert [slow.encode(record) for record in records("bad two", "bad one")] == [None, None]
    slow.prefetch(records("bad one"))
    slow.advance()
    assert len(said) == 2 and len(slow.failed) == 2


def test_others_do_not_see_what_is_prefetched(slow):
    """An evaluation between two steps may have records with the same ids."""
    [train] = records("train")
    held_out = replace(train, question="held-out record")
    slow.prefetch([train])
    slow.clear()
    assert len(slow.encode(held_out)) == 15
    slow.clear()
    slow.advance()
    assert len(slow.encode(train)) == 5


def test_a_rank_prefetches_the_groups_of_its_rows():
    """Also those that it does not own: here the middle group spans both ranks. After the last step there is nothing.
    References are begun by the owner alone."""
    asked: list[list[str]] = []
    supervised: list[tuple[list[str], list[str]]] = []
    for rank in range(2):
        cfg = SimpleNamespace(
            method="dyme",
            train=SimpleNamespace(max_steps=5, switch_fraction=0.5),
            rollout=SimpleNamespace(prompts_per_step=3, group_size=4),
            data=SimpleNamespace(shuffle=False),
            run=SimpleNamespace(seed=0),
        )
        engine = SimpleNamespace(family=SimpleNamespace(anchors={}), rank=rank, world_size=2)
        cache = SimpleNamespace(prefetch=asked.append)
        supervisor = SimpleNamespace(prefetch=lambda records, likely: supervised.append((records, likely)))
        position = SimpleNamespace(likely_memorized=lambda record, epoch: True)
        for step in (4, 5):
            stages.prefetch(cfg, engine, cache, supervisor, position, [f"record {i}" for i in range(9)], step)
    first, second = asked
    assert [records for records, _ in supervised] == asked
    assert sorted(supervised[0][1] + supervised[1][1]) == sorted({*first, *second})
    assert len(first) == len(second) == 2 and first[1] == second[0]
    assert {*first, *second} == {f"record {i}" for i in step_batch(4, 9, 3, 4, 2, 0, shuffle=False).records}


# --- model.max_pixels ----------


@pytest.mark.parametrize("size", [(400, 300), (1, 4000), (4000, 1), (101, 99), (50, 50)])
@pytest.mark.parametrize("limit", [2500, 100, 1, None])
def test_pictures_are_fitted_in_their_aspect_ratio(size, limit):
    image = Image.new("RGB", size)
    fitted = fit_pixels(image, limit)
    if limit is None or size[0] * size[1] <= limit:
        assert fitted is image
        return
    assert 0 < fitted.width * fitted.height <= limit
    if limit == 2500 and min(size) > 1:
        assert fitted.width / fitted.height == pytest.approx(size[0] / size[1], rel=0.03)
        assert fitted.width * fitted.height > 0.9 * limit


def test_resizing_is_said_once():
    seen, said = [], []

    class Sizes:
        def encode(self, text: str, images: list[Image.Image]) -> Prompt:
            seen.append([image.size for image in images])
            return Prompt(torch.arange(3))

    large = LazyImage(draw=lambda: Image.new("RGB", (40, 30)))
    small = LazyImage(draw=lambda: Image.new("RGB", (4, 3)))
    book = PromptCache(Sizes(), PromptConfig(template="{question}"), said.append, max_pixels=300)  # type: ignore[arg-type]
    for name in ("a", "b"):
        book.encode(replace(RECORD, id=name, images=(small, large)))
    assert seen == [[(4, 3), (20, 15)]] * 2
    assert said == ["pictures are resized to model.max_pixels=300, first that of record a: 40x30 to 20x15 (said once)"]
