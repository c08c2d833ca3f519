"""Generated charts: content, questions, traces and pictures, all by seed."""

from dyme.data.charts.config import ChartsSource
from dyme.data.charts.records import chart_record

__all__ = ["ChartsSource", "chart_record"]
