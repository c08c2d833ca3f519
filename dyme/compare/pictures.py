"""Pictures of evaluated items: the file that an item names, or the pictures of its record, read from the data again."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.compare.items import Item
from dyme.data import DataError, ImageError, Record, SourceConfig, read_records
from dyme.data.images import decode
from dyme.evaluation.files import SETTINGS
from dyme.report.html import Picture, embed


class Pictures:
    """Finds the pictures of the items of one evaluation folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, item: Item) -> Picture:
        """The picture, or why it is missing; neither for an item without a picture."""
        try:
            for path in [Path(item.image), self._folder / item.image] if item.image else []:
                if path.is_file():
                    return embed(decode(path))
            records, unreadable = self._records
            record = records.get(item.id)
            if record is None:
                why = f"no picture: {unreadable}" if unreadable else ""
                return Picture(missing=f"picture missing: {item.image}" if item.image else why)
            if (record.question, record.answers) != (item.question, item.gold):
                return Picture(missing="picture not shown: the data has changed since the evaluation")
            return embed(record.shown()) if record.images else Picture()
        except (ImageError, OSError) as error:
            return Picture(missing=f"picture missing: {error}")

    @cached_property
    def _records(self) -> tuple[dict[str, Record], str]:
        """Records by id of the held-out source in evaluation.yaml, and why there are none."""
        path = self._folder / SETTINGS
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            data = tree.get("data") if isinstance(tree, dict) else None
            held_out = data.get("eval") if isinstance(data, dict) else None
            source = TypeAdapter(SourceConfig).validate_python(held_out) if held_out else None
            return {record.id: record for record in read_records(source)} if source else {}, ""
        except (OSError, yaml.YAMLError, ValidationError, DataError) as error:
            return {}, f"the data of {path} cannot be read again ({' '.join(str(error).split())[:200]})"
