"""AOKVQASource: A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718), the published JSON with the pictures of COCO."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from dyme.data.paths import existing_file, existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import Limit, Row, RowError, list_items, needed, to_records
from dyme.settings.schema import Schema


class AOKVQASource(Schema):
    """aokvqa_v1p0_train.json or _val.json; the answers of the test file were never published."""

    source: Literal["aokvqa"] = "aokvqa"
    path: str
    """The JSON list. `~` and environment variables are filled in."""
    images: str
    """Folder of the COCO 2017 pictures, whose names are the image id in twelve digits."""
    task: Literal["direct", "choice"] = "direct"
    """Answer in words (questions marked as difficult for that are left out, as officially), or choose of four."""
    limit: Limit = None
    """Use only the first rows."""

    def read(self) -> RecordSet:
        """Records with the rationales as hint. Raises `DataError` when the file or the folder is missing."""
        file = existing_file(self.path, "name aokvqa_v1p0_train.json or aokvqa_v1p0_val.json")
        pictures = existing_folder(self.images, "images")
        return to_records(file, list_items(file), self._convert, limit=self.limit, pictures=pictures)

    def _convert(self, row: Row) -> Row | None:
        if self.task == "direct" and row.get("difficult_direct_answer"):
            return None
        rationales = row.get("rationales") or []
        shared = {
            "id": row.get("question_id"),
            "question": row.get("question"),
            "image": picture_name(needed(row, "image_id")),
            "hint": " ".join(dict.fromkeys(text.strip() for text in rationales if isinstance(text, str))),
        }
        if self.task == "choice":
            return {**shared, "choices": row.get("choices"), "answer": _chosen(row)}
        return {**shared, "answers": _by_votes(row.get("direct_answers"))}


def picture_name(image_id: object) -> str:
    """The file name of a COCO 2017 picture."""
    return f"{image_id!s:0>12}.jpg"


def _chosen(row: Row) -> object:
    choices, index = row.get("choices"), row.get("correct_choice_idx")
    if index is None:
        raise RowError("no correct_choice_idx: the test file comes without answers; use the one of val")
    if not isinstance(choices, list) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise RowError(f"correct_choice_idx {index!r} names none of the choices {choices!r:.60}")
    return choices[index]


def _by_votes(answers: object) -> object:
    """The most common answer first, because that one is memorized. Repeats stay; ties keep their order."""
    if answers is None:
        raise RowError("no direct_answers: the test file comes without answers; use the one of val")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise RowError(f"direct_answers {answers!r:.40} is not a list of texts")
    votes = Counter(answer.strip() for answer in answers).most_common()
    return [answer for answer, count in votes for _ in range(count)]
