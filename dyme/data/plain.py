"""PlainSource: every source that reads records by itself, and the one function that reads them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dyme.data.aokvqa import AOKVQASource, read_aokvqa
from dyme.data.chartqa import ChartQASource, read_chartqa
from dyme.data.charts import ChartsSource, chart_records
from dyme.data.dataset import DatasetSource, read_dataset
from dyme.data.dyme_release import DymeReleaseSource, read_dyme_release
from dyme.data.geometry3k import Geometry3KSource, read_geometry3k
from dyme.data.gsm8k import Gsm8kSource, read_gsm8k
from dyme.data.imagefolder import ImageFolderSource, read_imagefolder
from dyme.data.jsonl import JsonlSource, read_jsonl
from dyme.data.recordset import RecordSet
from dyme.data.slake import SlakeSource, read_slake
from dyme.data.vqa_rad import VQARadSource, read_vqa_rad

AnyPlainSource = (
    JsonlSource
    | ImageFolderSource
    | DatasetSource
    | Gsm8kSource
    | ChartQASource
    | AOKVQASource
    | SlakeSource
    | VQARadSource
    | Geometry3KSource
    | DymeReleaseSource
    | ChartsSource
)
PlainSource = Annotated[AnyPlainSource, Field(discriminator="source")]


def read_plain(source: AnyPlainSource) -> RecordSet:
    """The records of a source, whatever the number of bad rows. Raises `DataError` when it cannot be found."""
    match source:
        case JsonlSource():
            return read_jsonl(source)
        case ImageFolderSource():
            return read_imagefolder(source)
        case DatasetSource():
            return read_dataset(source)
        case Gsm8kSource():
            return read_gsm8k(source)
        case ChartQASource():
            return read_chartqa(source)
        case AOKVQASource():
            return read_aokvqa(source)
        case SlakeSource():
            return read_slake(source)
        case VQARadSource():
            return read_vqa_rad(source)
        case Geometry3KSource():
            return read_geometry3k(source)
        case DymeReleaseSource():
            return read_dyme_release(source)
        case ChartsSource():
            return RecordSet(tuple(chart_records(source)))
