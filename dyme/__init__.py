"""DyME: dynamic memorize-explore training of small vision-language models (arXiv 2506.23061)."""

__version__ = "0.1.0"
