"""Generated charts: content, questions, traces and pictures, all by seed."""

from dyme.data.charts.config import ChartSettings
from dyme.data.charts.records import chart_record
from dyme.data.record import RecordSet

__all__ = ["ChartsSource", "chart_record"]


class ChartsSource(ChartSettings):
    """Generated charts with questions, answers and demonstrations; a pure function of these settings."""

    def read(self) -> RecordSet:
        """All `count` records; pictures are drawn when they are loaded."""
        return RecordSet(tuple(chart_record(self, i) for i in range(self.count)))
