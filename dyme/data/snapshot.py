"""Splits of a folder of data files, as `datasets` finds them: a snapshot of a hub, or files named by split."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from dyme.data.errors import DataError

_SHARD = re.compile(r"(.*?-)(\d{4,5})(-of-)(\d{4,5})(\D.*)")
TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")


def splits_of_snapshot(root: Path, config: str | None = None) -> dict[str, list[Path]]:
    """The files of each split of a folder, in order: by `configs` in the front matter of README.md, or else by names
    (train-00000-of-00002.parquet, test.csv, validation/..); files that name no split are train.

    Nothing is read from the network. Raises `DataError` when the folder has several configurations and `config` names
    none of them, when it holds no table, and when it is unclear which of its files are meant.
    """
    root = _within_cache(root)
    found = _resolved(root, config)
    splits = {str(split): [Path(file) for file in files] for split, files in found.items()}
    held = [file for files in splits.values() for file in files]
    if not any(file.suffix in TABLES and file.is_file() for file in held):
        table = next((file for file in sorted(root.rglob("*")) if file.suffix in TABLES and file.is_file()), None)
        if table is not None:
            raise DataError(f"{root}: unclear which of its files is the data; if it is {table.name}, name {table}")
        raise DataError(f"{root}: holds no parquet, csv or JSON files of rows; name the file of the questions")
    formats = Counter(file.suffix for file in root.glob("*") if file.suffix in TABLES)
    rivals = [suffix for suffix in formats if suffix != held[0].suffix and formats[suffix] >= len(held)]
    if rivals and not (root / "README.md").is_file():
        other = next(file for file in sorted(root.glob(f"*{rivals[0]}")))
        raise DataError(
            f"{root}: unclear which of its files is the data; write files:path={held[0]} or files:path={other}"
        )
    return splits


def missing_shards(files: Iterable[Path]) -> list[Path]:
    """The files that the names of others speak of: train-00001-of-00003.parquet beside the other two."""
    held = {file: _SHARD.fullmatch(file.name) for file in files}
    wanted = {
        file.with_name(f"{m[1]}{number:0{len(m[2])}}{m[3]}{m[4]}{m[5]}"): None
        for file, m in held.items()
        if m
        for number in range(int(m[4]))
    }
    return [file for file in wanted if file not in held]


def _within_cache(root: Path) -> Path:
    """The newest snapshot where `root` is a folder of the hub's cache, models--x--y or datasets--x--y."""
    revisions = [path for path in root.glob("snapshots/*") if path.is_dir()]
    return max(revisions, key=lambda path: path.stat().st_mtime) if revisions else root


def _resolved(root: Path, config: str | None) -> Mapping[object, list[str]]:
    from datasets import get_dataset_config_names, load_dataset_builder

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a README without front matter
    try:
        with TemporaryDirectory() as cache:  # nothing is built: only the names of the files are wanted
            return dict(load_dataset_builder(str(root), name=config, cache_dir=cache).config.data_files or {})
    except Exception as error:  # yaml, datasets and huggingface_hub raise many kinds of errors
        try:
            names = get_dataset_config_names(str(root))
        except Exception:
            names = []
        if len(names) > 1:
            raise DataError(f"{root}: has several configurations; set config to one of: {', '.join(names)}") from error
        reason = " ".join(str(error).split())
        raise DataError(f"{root}: no data files found in it ({reason:.200}); name the file of the questions") from error
    finally:
        logger.setLevel(level)
