"""What a path on disk holds, guessed by its layout and content, never by a word in its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dyme.data.aokvqa import AOKVQASource, picture_name
from dyme.data.chartqa import PARTS, ChartQASource, chartqa_splits
from dyme.data.dataset import SPLITS_FILE, STATE_FILE, DatasetSource, splits_on_disk
from dyme.data.dyme_release import DymeReleaseSource
from dyme.data.errors import DataError
from dyme.data.files import FilesSource, document_items
from dyme.data.geometry3k import PROBLEM, Geometry3KSource, geometry3k_splits
from dyme.data.gsm8k import FLAG, Gsm8kSource
from dyme.data.imagefolder import METADATA, ImageFolderSource, splits_of
from dyme.data.jsonl import JsonlSource
from dyme.data.layouts import DIALOGUES
from dyme.data.plain import AnyPlainSource
from dyme.data.renames import suggested
from dyme.data.slake import SPLITS as SLAKE_SPLITS
from dyme.data.slake import SlakeSource, slake_splits
from dyme.data.snapshot import TABLES, splits_of_snapshot
from dyme.data.sniff import NAMES, format_of
from dyme.data.sources import SourceConfig
from dyme.data.vqa_rad import VQARadSource

FORMS = (
    "a .jsonl file or other rows (.json, .csv, .tsv, .parquet), a data set in its published layout, a run YAML, "
    "or source:key=value,key=value"
)
_LOOK = 8  # rows


@dataclass(frozen=True)
class NamedSource:
    """`label` says what the source is and, where it was guessed, from what.

    `part` is train or eval where a run configuration says so.
    """

    label: str
    source: SourceConfig
    part: str = ""


def guess(path: Path, plain: bool = False) -> list[NamedSource]:
    """The sources that a file or folder holds, one for each split. `plain`: only sources that take `fields`.

    Raises `DataError` where its layout is unknown, and where it could be one of two, with what to write.
    """
    if path.name == METADATA:
        path = path.parent
    return _guess_folder(path, plain) if path.is_dir() else _guess_file(path, plain)


def _guess_folder(path: Path, plain: bool) -> list[NamedSource]:
    """A source for each split of the folder, by its layout; as plain files where no layout of a known set fits."""
    single, stored = (path / METADATA).is_file(), splits_on_disk(path)
    layouts: list[tuple[type[AnyPlainSource], list[str] | None, str]] = [
        (ImageFolderSource, [""] if single else splits_of(path), METADATA if single else f"{{0}}/{METADATA}"),
        (DatasetSource, [""] if stored == [] else stored, STATE_FILE if stored == [] else SPLITS_FILE),
    ]
    if not plain:
        layouts += [
            (ChartQASource, chartqa_splits(path), "{0}/{0}_*.json"),
            (SlakeSource, [s for s in slake_splits(path) if _is_slake(path / f"{s}.json")], "{0}.json and imgs"),
            (Geometry3KSource, geometry3k_splits(path), f"{{0}}/*/{PROBLEM}"),
        ]
    found = [(source, splits, holds) for source, splits, holds in layouts if splits]
    if len(found) > 1:
        raise DataError(_unsure(path, *((s.model_fields["source"].default, h.format("*")) for s, _, h in found)))
    for source, splits, holds in found:
        return [_of_layout(source, path, split, holds.format(split)) for split in splits or []]
    if not any(file.suffix in TABLES for file in path.rglob("*")):
        raise DataError(
            f"{path}: neither the folder nor a subfolder holds {METADATA} or other files of rows, nor is it laid out "
            f"as a data set that is known; give {FORMS}"
        )
    splits = list(splits_of_snapshot(path))
    return [_of_layout(FilesSource, path, s, "files of rows") for s in (splits if len(splits) > 1 else [""])]


def _of_layout(source: type[AnyPlainSource], path: Path, split: str, holds: str) -> NamedSource:
    values = {"path": str(path)} | ({"split": split} if split else {})
    if source is ChartQASource:
        parts = [part for part in PARTS if (path / split / f"{split}_{part}.json").is_file()]
        values |= {"part": parts[0]} if len(parts) == 1 else {}
    return _named(source.model_validate(values), f"{path}, split {split}" if split else path, holds)


def _unsure(path: Path, *guesses: tuple[str, str]) -> str:
    (first, held), (second, other) = guesses[:2]
    mend = f"write {first}:path={path} or {second}:path={path}"
    return f"{path}: could be {first} (it holds {held}) or {second} (it holds {other}); {mend}"


def _guess_file(path: Path, plain: bool) -> list[NamedSource]:
    """The sources of a file: a JSON document and JSON lines by the keys of their first rows, anything else as rows."""
    kind = format_of(path)
    if kind == "json":
        return _of_list(path, plain)
    if kind != "jsonl":
        return [NamedSource(f"files {path} (guessed: {NAMES[kind]})", FilesSource(path=str(path)))]
    flags = [] if plain else _flags(path)
    share = sum(flags) / max(1, len(flags))
    if 0.25 < share < 0.75:
        raise DataError(
            f"{path}: some of its first answers end in {FLAG!r} and some do not; if it is GSM8K write "
            f"gsm8k:path={path}, if not write jsonl:path={path}"
        )
    if share >= 0.75:
        return [NamedSource(f"gsm8k {path} (guessed: the first answers have {FLAG!r})", Gsm8kSource(path=str(path)))]
    return [NamedSource(f"jsonl {path} (guessed: a file of {NAMES[kind]})", JsonlSource(path=str(path)))]


def _of_list(path: Path, plain: bool) -> list[NamedSource]:
    """The source of a JSON document, told by the keys of its first entries."""
    looked = [item.raw for item in islice(document_items(path), _LOOK) if isinstance(item.raw, dict)]
    first = looked[0] if looked else None
    keys = {key for entry in looked for key in entry}
    if not keys:
        raise DataError(f"{path}: holds no rows; name another file")
    where = str(path)
    rows = NamedSource(f"files {path} (guessed: {NAMES['json']} of rows)", FilesSource(path=where))
    if plain:
        return [rows]
    if "question_wo_prompt" in keys:
        return [_named(DymeReleaseSource(path=where), path, "question_wo_prompt")]
    if {"image_name", "image_organ"} <= keys:
        sources = [
            VQARadSource(path=where, split=s) for s in (("train", "test") if "phrase_type" in keys else ("all",))
        ]
        return [_named(source, f"{path}, split {source.split}", "image_organ") for source in sources]
    if {"image_id", "choices", "direct_answers"} <= keys and isinstance(first, dict):
        return [_named(AOKVQASource(path=where, images=_coco_folder(path, first)), path, "direct_answers")]
    if {"img_name", "q_lang"} <= keys and path.stem in SLAKE_SPLITS:
        return [_named(SlakeSource.model_validate({"path": str(path.parent), "split": path.stem}), path, "q_lang")]
    if {"imgname", "query", "label"} <= keys and path.parent.name in chartqa_splits(path.parent.parent):
        split, part = path.parent.name, path.stem.removeprefix(f"{path.parent.name}_")
        whole = ChartQASource.model_validate({"path": str(path.parent.parent), "split": split, "part": part})
        return [_named(whole, path, "imgname")]
    if {"question", "answer", "answers", *DIALOGUES} & keys or suggested(keys, ("question", "answer")):
        return [rows]
    known = ", ".join(sorted(keys)) or "none"
    raise DataError(f"{path}: a JSON list of no known data set (keys of its first entry: {known}); give {FORMS}")


def _coco_folder(path: Path, entry: dict[str, object]) -> str:
    """The folder near the file that holds the picture of its first entry."""
    name = picture_name(entry.get("image_id"))
    near = (path.parent, path.parent.parent)
    found = next((file for folder in near for depth in ("", "*/", "*/*/") for file in folder.glob(depth + name)), None)
    if found is None:
        raise DataError(
            f"{path}: A-OKVQA, but no {name} near it; say where the pictures of COCO are: "
            f"aokvqa:path={path},images=<folder>"
        )
    return str(found.parent)


def _named(source: SourceConfig, where: object, holds: str) -> NamedSource:
    return NamedSource(f"{source.source} {where} (guessed: it holds {holds})", source)


def _flags(path: Path) -> list[bool]:
    """Whether the answers of the first rows hold the flag of GSM8K; rows without an answer do not count."""
    with path.open("rb") as file:
        lines = list(islice(iter(lambda: file.readline(1 << 20), b""), _LOOK))
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue  # the reader reports the broken line
    return [FLAG in str(row["answer"]) for row in rows if isinstance(row, dict) and row.get("answer") is not None]


def _is_slake(path: Path) -> bool:
    try:
        first = next((item.raw for item in document_items(path)), None)
    except DataError:
        return True  # its reader says what is wrong
    return isinstance(first, dict) and {"img_name", "q_lang"} & set(first) != set()
