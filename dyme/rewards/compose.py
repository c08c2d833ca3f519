"""Rewards of a batch of completions: format f, thinking t, accuracy a and the user's u_j composed to
R = w_f f + w_t t + w_a a + sum_j w_j u_j."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dyme.data.record import Record
from dyme.rewards.answer import Completion, clean_answer, format_score, gold_as_written, read_completion
from dyme.rewards.verifiers import Verifier, get_verifier
from dyme.settings.rewards import RewardConfig
from dyme.supervision.lexical import Checker

Style = Literal["think", "direct"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class UserScores:
    """Values of U user rewards for R completions: `values` float64 [R, U], `failed` bool [R, U], `weights` U numbers.

    A value is NaN if the function does not apply to the row (it returned None) or failed.
    """

    values: Array
    failed: NDArray[np.bool_]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Scores:
    """Scores of R completions, float64 [R] each; `scored` is bool [R].

    `correct` is s = accuracy * format. A row whose verifier failed is unscored: accuracy, correct and reward are NaN,
    and `errors` counts why, by kind. A row for which a user reward with a weight other than 0 failed is unscored too,
    with a NaN reward. `thinking` is 0 if nothing was checked.
    """

    format: Array
    thinking: Array
    accuracy: Array
    reward: Array
    correct: Array
    scored: NDArray[np.bool_]
    errors: dict[str, int]


@dataclass(frozen=True)
class Checked:
    """Format, thinking and accuracy of R completions as float64 [R, 3], the thinking text of each, the number of failed
    verifiers by kind, and for each kind what the first one said and where."""

    parts: Array
    thinking: tuple[str, ...]
    errors: dict[str, int]
    examples: dict[str, str] = field(default_factory=dict)


class _Errors:
    """Failures of a verifier by kind, and the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, example)


def score(
    texts: Sequence[str],
    records: Sequence[Record],
    *,
    truncated: Sequence[bool],
    config: RewardConfig,
    flag: str,
    style: Style = "think",
    checker: Checker | None = None,
) -> Scores:
    """`check` and `compose`, without user rewards."""
    checked = check(texts, records, truncated=truncated, config=config, flag=flag, style=style, checker=checker)
    return compose(checked, config)


def check(
    texts: Sequence[str],
    records: Sequence[Record],
    *,
    truncated: Sequence[bool],
    config: RewardConfig,
    flag: str,
    style: Style = "think",
    checker: Checker | None = None,
) -> Checked:
    """Check completion i as an answer to record i; a truncated completion has format and accuracy 0. Without a checker
    thinking is 0 for all.

    In style "direct" the whole completion is the answer, or else what it gives plainly ("**4**", "4. The bar shows
    it."); any answer that is not guessed is a valid format, and thinking has no weight.
    Raises `ValueError` only for sequences of different length; failures of a row are counted in `Checked.errors`.
    """
    if not len(texts) == len(records) == len(truncated):
        raise ValueError(
            f"give one record and one truncated flag per completion: got {len(texts)} texts, {len(records)} records "
            f"and {len(truncated)} flags"
        )
    verifier = get_verifier(config.verifier, relative_tolerance=config.relative_tolerance)
    checker = checker if style == "think" else None
    errors = _Errors()
    rows = np.zeros((len(texts), 3), dtype=np.float64)
    thinking = []
    for row, text, record, cut in zip(rows, texts, records, truncated, strict=True):
        parts = read_completion(text, flag, style)
        thinking.append(parts.thinking)
        # a record without a reference scores no thinking; 0 for all rows of its group drops out of the advantages
        row[1] = (checker(parts.thinking, record) or 0.0) if checker else 0.0
        if not cut:
            row[0] = format_score(parts, config.min_thinking_chars if style == "think" else 0)
            row[2] = _best_accuracy(verifier, parts, clean_answer(text) if style == "direct" else None, record, errors)
    return Checked(rows, tuple(thinking), dict(errors.counts), errors.examples)


def _best_accuracy(verifier: Verifier, parts: Completion, whole: str | None, record: Record, errors: _Errors) -> float:
    """The accuracy of a reply: of `whole`, the reply without thinking, of its answer, or of a gold answer of several
    lines or sentences that it gives as written. NaN where the verifier failed."""
    best = 0.0
    for answer in dict.fromkeys((whole, parts.answer)):
        best = max(_accuracy(verifier, answer, record, errors), best)  # NaN stays, as the first argument
        if not best < 1.0:
            return best
    return max(_accuracy(verifier, gold_as_written(parts, record), record, errors), best)


def _accuracy(verifier: Verifier, answer: str | None, record: Record, errors: _Errors) -> float:
    """The verifier's accuracy, or NaN with the reason counted."""
    if not answer:
        return 0.0
    try:
        accuracy = float(verifier(answer, record))
    except Exception as error:  # an edge: one bad record or verifier must cost its rows, not the run
        errors.add(type(error).__name__, _told(error))
        return math.nan
    if math.isnan(accuracy):
        errors.add("nan", f"returned NaN for {answer!r:.40}")
    elif not 0.0 <= accuracy <= 1.0:
        errors.add("out_of_range", f"returned {accuracy!r:.40}, which is not in [0, 1]")
        return math.nan
    return accuracy


def _told(error: Exception) -> str:
    """The last line of an exception's traceback, with file, line and function."""
    what = " ".join("".join(traceback.format_exception_only(error)).split())[:200]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{what} ({frame.filename}, line {frame.lineno}, in {frame.name})"


def compose(checked: Checked, config: RewardConfig, user: UserScores | None = None) -> Scores:
    """R of checked completions, row by row."""
    valid, thinking, accuracy = (checked.parts[:, column].copy() for column in range(3))
    weights = config.weights
    reward = weights.format * valid + weights.thinking * thinking + weights.accuracy * accuracy
    scored = ~np.isnan(accuracy)
    if user is not None:
        used = np.array(user.weights) != 0.0
        reward += np.nan_to_num(user.values) @ np.array(user.weights)
        failed = user.failed[:, used].any(axis=1)
        reward[failed], scored[failed] = math.nan, False
    if config.require_format:
        reward[(valid == 0.0) & scored] = 0.0
    # w_a = 0 must not hide a failure: NaN times 0 is NaN, so the row stays unscored
    return Scores(valid, thinking, accuracy, reward, accuracy * valid, scored, checked.errors)
