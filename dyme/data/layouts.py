"""Layouts of rows that are known by their shape: conversations, votes, one column for each picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dyme.data.choices import as_list
from dyme.data.errors import RowError

Row = dict[str, Any]
DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "texts", "prompt")
_ASKS = ("user", "human")
_REPLIES = ("assistant", "gpt", "model", "bot", "chatgpt")
_MARK = re.compile(r"<image(?:[ _]?\d+)?>|<\|image\|>")
_NUMBERED = re.compile(r"image[_ ]?(\d{1,2})")
PICTURES = ("image", "images", "file_name")


def with_our_keys(row: Row) -> Row:
    """The row with `question`, `answer` or `answers`, and pictures, taken out of the layouts in docs/data.md.

    What a row has under our names stays as it is. Raises `RowError` for a conversation without question and answer.
    """
    row = _with_numbered_pictures(row)
    turns = _dialogue(row)
    if turns is not None:
        row = _first_pair(row, turns)
    return {**row, "answers": _votes(as_list(row["answers"]))} if "answers" in row else row


def is_dialogue(value: object) -> bool:
    """Whether a value is a list of turns: role and content, from and value, or user and assistant."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _turns(turn) for turn in value)


def _dialogue(row: Row) -> list[Row] | None:
    if is_dialogue(row.get("question")):
        return list(row["question"])
    if row.get("question") is not None:
        return None
    for key in DIALOGUES:
        value = as_list(row.get(key))
        if isinstance(value, list) and is_dialogue(value):
            return value
    return None


def _first_pair(row: Row, turns: list[Row]) -> Row:
    """The first question and its reply; turns of the system and all later ones are left out."""
    asked: list[str] = []
    reply: str | None = None
    pictures: list[object] = []
    later = 0
    for who, content in (pair for turn in turns for pair in _turns(turn)):
        if reply is not None:
            later += len(_MARK.findall(str(content))) + str(content).count("'type': 'image")
        elif who in _REPLIES and asked:
            reply, _ = _text(content)
        elif who in _ASKS:
            text, shown = _text(content)
            asked.append(text)
            pictures += shown
    if not asked:
        raise RowError("the conversation has no turn of a user; write one with role: user, or from: human")
    held = next((as_list(row[key]) for key in PICTURES if row.get(key) not in (None, "", [])), None)
    own = held if isinstance(held, list) else [] if held is None else [held]
    shown = [picture for picture in pictures if picture is not None] or own
    question = "\n".join(asked)
    marks = len(_MARK.findall(question))
    if 0 < marks < len(shown) == marks + later:
        shown = shown[:marks]  # the others belong to later questions
    question = _placed(question, len(shown))
    answered = row.get("answer") is not None or row.get("answers") is not None
    if not answered and reply is None:
        raise RowError("the conversation has no reply after its question; write a turn with role: assistant")
    converted = {key: value for key, value in row.items() if key not in PICTURES}
    return {**converted, "question": question, "images": shown, **({} if answered else {"answer": reply})}


def _turns(turn: Row) -> list[tuple[str, object]]:
    for role, content in (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")):
        if isinstance(turn.get(role), str) and content in turn:
            return [(turn[role].lower(), turn[content])]
    if "user" in turn and "assistant" in turn:
        return [("user", turn["user"]), ("assistant", turn["assistant"])]
    return []


def _text(content: object) -> tuple[str, list[object]]:
    """The text of a turn with a mark for each picture, and the pictures, None where the row names them elsewhere."""
    if isinstance(content, str):
        return content.strip(), []
    if not isinstance(content, list):
        raise RowError(f"content of a turn is a {type(content).__name__}; a text or a list of parts is needed")
    texts: list[str] = []
    pictures: list[object] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part.strip())
        elif isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type") in (None, "text"):
            texts.append(part["text"].strip())
        elif isinstance(part, dict) and "image" in str(part.get("type")):
            texts.append("<image>")
            pictures.append(_picture(part))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowError(f"a part of the conversation is {kind!r}; only text and images can be read")
    return "\n".join(texts), pictures


def _picture(part: Row) -> object:
    for key in ("image", "image_url", "url", "path", "base64", "bytes"):
        value = part.get(key)
        if isinstance(value, dict) and isinstance(value.get("url"), str):
            value = value["url"]
        if value not in (None, ""):
            return value
    return None


def _placed(question: str, pictures: int) -> str:
    """The question without its marks where all of these stand before or after the text: a family puts pictures first.
    Marks between words keep their places."""
    pieces = [piece.strip() for piece in _MARK.split(question)]
    marks = len(pieces) - 1
    if marks and marks != pictures:
        raise RowError(
            f"{marks} <image> marks in the question and {pictures} pictures; write as many marks as pictures"
        )
    if sum(map(bool, pieces)) <= 1 and (pieces[0] or pieces[-1] or not marks):
        return pieces[0] or pieces[-1]
    return "<image>".join(_MARK.split(question)).strip()


def _with_numbered_pictures(row: Row) -> Row:
    """image_1, image_2 ... as one list, where the row has no other picture."""
    if any(row.get(key) not in (None, "", []) for key in PICTURES):
        return row
    found = [(int(m[1]), row[key]) for key in row if isinstance(key, str) and (m := _NUMBERED.fullmatch(key))]
    pictures = [value for _, value in sorted(found, key=lambda pair: pair[0]) if value not in (None, "")]
    return {**row, "images": pictures} if pictures else row


def _votes(value: object) -> object:
    """Answers as a plain list: [{"answer": ..}, ..] of VQAv2 with the commonest first, {"text": [..]} of SQuAD."""
    held: Iterable[object] | None = None
    if isinstance(value, dict):
        held = next((value[key] for key in ("answer", "text") if isinstance(value.get(key), list)), None)
    elif isinstance(value, list) and value and all(isinstance(entry, dict) and "answer" in entry for entry in value):
        held = [entry["answer"] for entry in value]
    if held is None:
        return value
    counted = Counter(str(answer).strip() for answer in held if answer is not None).most_common()
    return [answer for answer, count in counted for _ in range(count)]
