"""Names of what an evaluation folder holds, for those who write it and those who read it."""

ITEMS, SUMMARY, SETTINGS = "items.jsonl", "summary.json", "evaluation.yaml"
COLUMNS = ("think", "direct")
"""Lists of replies in a line of items.jsonl."""
