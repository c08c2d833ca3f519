"""Source configurations from what a user names on the command line; what a path holds is guessed by its layout."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.data.aokvqa import AOKVQASource, picture_name
from dyme.data.chartqa import ChartQASource, chartqa_splits
from dyme.data.dataset import SPLITS_FILE, STATE_FILE, DatasetSource, splits_on_disk
from dyme.data.dyme_release import DymeReleaseSource
from dyme.data.errors import DataError
from dyme.data.geometry3k import PROBLEM, Geometry3KSource, geometry3k_splits
from dyme.data.gsm8k import FLAG, Gsm8kSource
from dyme.data.imagefolder import METADATA, ImageFolderSource, splits_of
from dyme.data.jsonl import JsonlSource
from dyme.data.paths import expand
from dyme.data.rows import list_items
from dyme.data.slake import SPLITS as SLAKE_SPLITS
from dyme.data.slake import SlakeSource, slake_splits
from dyme.data.sources import SourceConfig
from dyme.data.vqa_rad import VQARadSource

FORMS = "a .jsonl file, a data set in its published layout, a run YAML, or source:key=value,key=value"
_ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
_TAGS = [m.model_fields["source"].default for m in typing.get_args(typing.get_args(SourceConfig)[0])]
_SOURCE = re.compile(rf"({'|'.join(_TAGS)}):(.*)", re.DOTALL)
_COMMA = re.compile(r",(?![^\[]*\])")  # not inside [a, b]


@dataclass(frozen=True)
class NamedSource:
    """`label` says what the source is and, where it was guessed, from what.

    `part` is train or eval where a run configuration says so.
    """

    label: str
    source: SourceConfig
    part: str = ""


def parse_spec(spec: str) -> list[NamedSource]:
    """The sources that `spec` names. Raises `DataError` with the reason and the mend when it names none."""
    written = _SOURCE.fullmatch(spec)
    if written:
        pairs = [pair for pair in _COMMA.split(written[2]) if pair]
        return [NamedSource(spec, _validated(spec, {"source": written[1], **dict(_pair(spec, p) for p in pairs)}))]
    path = expand(spec)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_run(path)
    if path.is_dir():
        return _guess_folder(path)
    if path.name == METADATA and path.is_file():
        return _guess_folder(path.parent)
    if path.is_file():
        return _guess_file(path)
    raise DataError(f"{spec}: no such file or folder; give {FORMS}")


def snippet(named: list[NamedSource]) -> str:
    """The `data` section of a run configuration with these sources, as YAML."""
    chosen = {n.part: n.source for n in named if n.part} or _chosen([n.source for n in named])
    data = {part: {"source": s.source, **s.model_dump(mode="json", exclude_unset=True)} for part, s in chosen.items()}
    return yaml.safe_dump({"data": data}, default_flow_style=None, sort_keys=False, width=1000, allow_unicode=True)


def _chosen(sources: list[SourceConfig]) -> dict[str, SourceConfig]:
    """Trains on the split that is called train, or else on the first source."""
    train = next((source for source in sources if _split(source) == "train"), sources[0])
    others = [source for source in sources if source is not train]
    # A run is evaluated many times, so validation data goes before test data.
    others.sort(key=lambda source: not _split(source).startswith("val"))
    return {"train": train} | ({"eval": others[0]} if others else {})


def _split(source: SourceConfig) -> str:
    return str(getattr(source, "split", None) or "")


def _pair(spec: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"{spec}: {text!r} is not key=value")
    # A path such as ${DIR}/a.jsonl or an id such as 007 is text; only lists and numbers mean something in YAML.
    plain = re.fullmatch(r"\s*(\[.*\]|[1-9]\d*|0|\d*\.\d+)\s*", value)
    return key.strip(), yaml.safe_load(value) if plain else value.strip()


def _validated(name: str, values: object) -> SourceConfig:
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'source'}: {e['msg']}" for e in error.errors())
        raise DataError(f"{name}: {reasons}") from error


def _of_run(path: Path) -> list[NamedSource]:
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = run.get("data") if isinstance(run, dict) else None
    if not isinstance(data, dict) or not (data.get("train") or data.get("eval")):
        raise DataError(f"{path}: neither data.train nor data.eval; name a run configuration, or {FORMS}")
    return [
        NamedSource(f"{path}: data.{part}", _validated(f"{path}: data.{part}", data[part]), part)
        for part in ("train", "eval")
        if data.get(part)
    ]


def _guess_folder(path: Path) -> list[NamedSource]:
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


def _guess_file(path: Path) -> list[NamedSource]:
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
