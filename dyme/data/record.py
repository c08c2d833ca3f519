"""Record: one question with its gold answers and its pictures, which are decoded only when they are loaded.

RecordSet: the records of a source, and the rows that were left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from PIL import Image

from dyme.data.errors import BadRow, ImageError
from dyme.data.images import decode, side_by_side
from dyme.data.renames import Kind


@dataclass(frozen=True)
class LazyImage:
    """A picture by file (`path`) or by recipe (`draw`, for generated data and pictures in data files); exactly one of
    the two is set. Holds no pixels and pickles."""

    path: Path | None = None
    draw: Callable[[], Image.Image] | None = None

    def load(self) -> Image.Image:
        """The picture in RGB. Raises `ImageError` when it is missing, truncated or a decompression bomb, or cannot be
        drawn."""
        if self.draw is None:
            assert self.path is not None, "LazyImage needs a path or a draw function"
            return decode(self.path)
        try:
            return self.draw()
        except ImageError:
            raise
        except Exception as error:  # an edge: whatever a data set raises on one picture costs the rows that show it
            raise ImageError(
                f"{self.draw}: cannot be drawn ({type(error).__name__}: {error}); mend its data"
            ) from error


@dataclass(frozen=True)
class Record:
    """One training or evaluation item.

    `answers` are the accepted gold answers. The first is memorized; an answer that several people gave is repeated.
    `choices` are the options of a multiple-choice question in order (A, B, ...). `hint` is a reference thinking trace.
    `facts` describes in words what the pictures show. `kind` is a category used in reports ("value", "yes_no").
    Text-only records have no `images`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    hint: str | None = None
    facts: str | None = None
    images: tuple[LazyImage, ...] = ()
    kind: str = ""

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def image(self) -> LazyImage | None:
        """The first picture."""
        return self.images[0] if self.images else None

    def shown(self) -> Image.Image:
        """All pictures side by side, for display; the record must have one. Raises `ImageError`."""
        return side_by_side([image.load() for image in self.images])


@dataclass(frozen=True)
class RecordSet(Sequence[Record]):
    """Records in file order, without the `bad` rows. Can be pickled for data workers.

    `file` and `lines` (from 1, one for each record) say where records were read; generated records have neither.
    `files` (one for each record) is set where records come from several files. `keys` are those of the rows as they
    lie in the file, with the kind of their values.
    """

    records: tuple[Record, ...]
    bad: tuple[BadRow, ...] = ()
    file: Path | None = None
    lines: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    keys: Mapping[str, Kind] = field(default_factory=dict, hash=False)

    def origin(self, index: int) -> tuple[Path, int]:
        """File and line of a record; an empty path and 0 for generated records."""
        file = self.files[index] if self.files else self.file or Path()
        return file, self.lines[index] if self.lines else 0

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)
