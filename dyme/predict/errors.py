"""PredictError: an error that ends a prediction."""


class PredictError(ValueError):
    """Input, model or output that cannot be used; the message is one line with the mend."""
