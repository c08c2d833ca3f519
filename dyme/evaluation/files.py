"""Names of the files of an evaluation folder and of the columns in items.jsonl."""

ITEMS, SUMMARY, SETTINGS = "items.jsonl", "summary.json", "evaluation.yaml"
COLUMNS = ("think", "direct")
"""Lists of replies in a line of items.jsonl."""
