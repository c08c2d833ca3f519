"""Records, the sources they come from, and pictures."""

from dyme.data.errors import BadRow, DataError
from dyme.data.record import ImageError, LazyImage, Record
from dyme.data.recordset import RecordSet

__all__ = ["BadRow", "DataError", "ImageError", "LazyImage", "Record", "RecordSet"]
