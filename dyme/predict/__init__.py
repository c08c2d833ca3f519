"""Prediction with a local checkpoint: one question, a file of them, or one question for a folder of pictures.

    python -m dyme.predict --model runs/quickstart/export --image chart.png "What is the value of red?"

A single process without a launcher; docs/predict.md has the rest.
"""
