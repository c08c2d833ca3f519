"""Records, the sources they come from, and pictures.

records = load_records(ChartsSource(count=1000))
records[0].image.load()
"""

from dyme.data.chartqa import ChartQASource
from dyme.data.charts import ChartsSource
from dyme.data.dataset import DatasetSource
from dyme.data.errors import BadRow, DataError
from dyme.data.gsm8k import Gsm8kSource
from dyme.data.imagefolder import ImageFolderSource
from dyme.data.jsonl import JsonlSource
from dyme.data.record import ImageError, LazyImage, Record
from dyme.data.recordset import RecordSet
from dyme.data.sources import SourceConfig, load_records, read_records

__all__ = [
    "BadRow",
    "ChartQASource",
    "ChartsSource",
    "DataError",
    "DatasetSource",
    "Gsm8kSource",
    "ImageError",
    "ImageFolderSource",
    "JsonlSource",
    "LazyImage",
    "Record",
    "RecordSet",
    "SourceConfig",
    "load_records",
    "read_records",
]
