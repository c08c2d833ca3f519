"""PlainSource: every source that reads records by itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dyme.data.aokvqa import AOKVQASource
from dyme.data.chartqa import ChartQASource
from dyme.data.charts import ChartsSource
from dyme.data.dataset import DatasetSource
from dyme.data.dyme_release import DymeReleaseSource
from dyme.data.files import FilesSource
from dyme.data.geometry3k import Geometry3KSource
from dyme.data.gsm8k import Gsm8kSource
from dyme.data.imagefolder import ImageFolderSource
from dyme.data.jsonl import JsonlSource
from dyme.data.slake import SlakeSource
from dyme.data.vqa_rad import VQARadSource

AnyPlainSource = (
    JsonlSource
    | ImageFolderSource
    | DatasetSource
    | FilesSource
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
