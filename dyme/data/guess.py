"""What a file or folder holds, guessed by its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dyme.data.aokvqa import AOKVQASource, picture_name
from dyme.data.chartqa import ChartQASource, chartqa_splits
from dyme.data.dataset import SPLITS_FILE, STATE_FILE, DatasetSource, splits_on_disk
from dyme.data.dyme_release import DymeReleaseSource
from dyme.data.errors import DataError
from dyme.data.geometry3k import PROBLEM, Geometry3KSource, geometry3k_splits
from dyme.data.gsm8k import FLAG, Gsm8kSource
from dyme.data.imagefolder import METADATA, ImageFolderSource, splits_of
from dyme.data.jsonl import JsonlSource
from dyme.data.rows import list_items
from dyme.data.slake import SPLITS as SLAKE_SPLITS
from dyme.data.slake import SlakeSource, slake_splits
from dyme.data.sources import SourceConfig
from dyme.data.vqa_rad import VQARadSource

FORMS = "a .jsonl file, a data set in its published layout, a run YAML, or source:key=value,key=value"


@dataclass(frozen=True)
class NamedSource:
    """`label` says what the source is and, where it was guessed, from what.

    `part` is train or eval where a run configuration says so.
    """

    label: str
    source: SourceConfig
    part: str = ""


def guess_folder(path: Path) -> list[NamedSource]:
    """A source for each split of the folder. Raises `DataError` when its layout is unknown."""
    if (path / METADATA).is_file():
        return [_named(ImageFolderSource(path=str(path)), path, METADATA)]
    folders, stored = splits_of(path), splits_on_disk(path)
    if stored == [] and not folders:
        return [_named(DatasetSource(path=str(path)), path, STATE_FILE)]
    layouts = (
        (ImageFolderSource, folders, f"{{0}}/{METADATA}"),
        (DatasetSource, stored, SPLITS_FILE),
        (ChartQASource, chartqa_splits(path), "{0}/{0}_*.json"),
        (SlakeSource, slake_splits(path), "{0}.json and imgs"),
        (Geometry3KSource, geometry3k_splits(path), f"{{0}}/*/{PROBLEM}"),
    )
    for source, splits, holds in layouts:
        if splits:
            return [
                _named(source.model_validate({"path": str(path), "split": s}), f"{path}, split {s}", holds.format(s))
                for s in splits
            ]
    raise DataError(
        f"{path}: neither the folder nor a subfolder holds {METADATA}, nor is it laid out as a data set that is "
        f"known; give {FORMS}"
    )


def guess_file(path: Path) -> list[NamedSource]:
    """The sources of a file: a JSON list by the keys of its first entry, anything else as JSONL."""
    if "gsm8k" in str(path).lower():
        return [NamedSource(f"gsm8k {path} (guessed: by its name)", Gsm8kSource(path=str(path)))]
    if path.suffix == ".json" and path.read_bytes()[:64].lstrip().startswith(b"["):
        return _of_list(path)
    if _has_flag(path):
        return [NamedSource(f"gsm8k {path} (guessed: the first answer has {FLAG!r})", Gsm8kSource(path=str(path)))]
    return [NamedSource(f"jsonl {path} (guessed: a file)", JsonlSource(path=str(path)))]


def _of_list(path: Path) -> list[NamedSource]:
    """The source of a JSON list, told by the keys of its first entry."""
    items = list_items(path)
    first = items[0].raw if items else None
    keys = set(first) if isinstance(first, dict) else set()
    where = str(path)
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


def _has_flag(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    try:
        row = json.loads(first)
    except ValueError:
        return False  # the reader reports the broken line
    return isinstance(row, dict) and FLAG in str(row.get("answer"))
