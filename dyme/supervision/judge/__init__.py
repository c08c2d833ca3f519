"""The judge: a client of OpenAI-compatible servers that answers, fails or gives up in time, but never stops a run."""

from dyme.settings.judge import JudgeConfig, JudgeEndpoint
from dyme.supervision.judge.answers import parse_answer
from dyme.supervision.judge.client import Judge, open_judge
from dyme.supervision.judge.types import Answer, JudgeCounts, Question

__all__ = ["Answer", "Judge", "JudgeConfig", "JudgeCounts", "JudgeEndpoint", "Question", "open_judge", "parse_answer"]
