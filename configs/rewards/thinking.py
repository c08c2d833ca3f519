"""Two rewards for `reward.user`: brevity, and a penalty on repetition."""


def short_enough(completions, **columns):
    """1 up to 60 words, falling to 0 at 120."""
    return [min(1.0, max(0.0, 2 - len(text.split()) / 60)) for text in completions]


async def repeats(thinking, **columns):
    """Share of the thinking's words that were said before; None where nothing was thought."""
    every = [text.lower().split() for text in thinking]
    return [1 - len(set(words)) / len(words) if words else None for words in every]
