"""Chart records: record i of a split as a pure function of the settings and i."""

from __future__ import annotations

import random
from functools import partial

from PIL import Image

from dyme.data.charts import full, tiny
from dyme.data.charts.chart import Chart, facts, split_of
from dyme.data.charts.config import ChartSettings
from dyme.data.charts.questions import CAPTION, Question, ask
from dyme.data.charts.traces import write_trace
from dyme.data.record import LazyImage, Record


def chart_record(config: ChartSettings, index: int) -> Record:
    """Record `index`, the same for every `count`; traces of another quality come with the same chart and question."""
    stream = f"{config.scale}/{config.seed}/{config.split}/{index}"
    rng = random.Random(stream)
    caption = config.task == "captions"
    if config.task == "base":
        caption = rng.random() < config.caption_fraction or index < config.captions_first
    chart, question = _draw(config, caption, rng)
    hint = None
    if config.task == "qa":
        # A separate random stream, so the quality of traces never changes which charts are drawn.
        trace_rng = random.Random(stream + "/trace")
        hint = write_trace(chart, question, config.scale, config.trace, config.wrong_reading_probability, trace_rng)
    draw = partial(draw_picture, chart, config.scale, config.size, config.max_items, config.max_value)
    return Record(
        id=f"charts-{config.split}-{index:06d}",
        question=question.text,
        answers=(question.answer,),
        hint=hint,
        facts=facts(chart),
        images=(LazyImage(draw=draw),),
        kind=question.kind,
    )


def _draw(config: ChartSettings, caption: bool, rng: random.Random) -> tuple[Chart, Question]:
    """Draws until the content belongs to the split and the question has one answer; kinds stay even."""
    kind = rng.choice(config.kinds)
    content = tiny.draw_content if config.scale == "tiny" else full.draw_content
    while True:
        chart = content(config, rng)
        if split_of(chart) != config.split:
            continue
        if caption:
            return chart, Question("caption", CAPTION[config.scale], facts(chart), "")
        question = ask(chart, kind, config.scale, rng)
        if question is not None:
            return chart, question


def draw_picture(chart: Chart, scale: str, size: int, max_items: int, max_value: int) -> Image.Image:
    """The chart in RGB, at top level so that records pickle."""
    if scale == "tiny":
        return tiny.draw_picture(chart, size, max_items, max_value)
    from dyme.data.charts.plot import draw_plot  # matplotlib takes a second to import and tiny charts do without

    return draw_plot(chart, size, max_value)
