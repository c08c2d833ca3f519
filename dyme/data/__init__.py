"""Records, the sources they come from, and pictures.

records = load_records(ChartsSource(count=1000))
records[0].image.load()
"""

from dyme.data.aokvqa import AOKVQASource
from dyme.data.chartqa import ChartQASource
from dyme.data.charts import ChartsSource
from dyme.data.dataset import DatasetSource
from dyme.data.dyme_release import DymeReleaseSource
from dyme.data.errors import BadRow, DataError, ImageError
from dyme.data.files import FilesSource
from dyme.data.geometry3k import Geometry3KSource
from dyme.data.gsm8k import Gsm8kSource
from dyme.data.imagefolder import ImageFolderSource
from dyme.data.jsonl import JsonlSource
from dyme.data.mixture import MixturePart, MixtureSource
from dyme.data.record import LazyImage, Record, RecordSet
from dyme.data.slake import SlakeSource
from dyme.data.sources import SourceConfig, load_records, read_records
from dyme.data.vqa_rad import VQARadSource

__all__ = [
    "AOKVQASource",
    "BadRow",
    "ChartQASource",
    "ChartsSource",
    "DataError",
    "DatasetSource",
    "DymeReleaseSource",
    "FilesSource",
    "Geometry3KSource",
    "Gsm8kSource",
    "ImageError",
    "ImageFolderSource",
    "JsonlSource",
    "LazyImage",
    "MixturePart",
    "MixtureSource",
    "Record",
    "RecordSet",
    "SlakeSource",
    "SourceConfig",
    "VQARadSource",
    "load_records",
    "read_records",
]
