"""PredictError: what ends a prediction before it starts."""


class PredictError(ValueError):
    """Something that cannot be answered or written; the message is one line with the mend."""
