"""python -m dyme.tools.check PATH [--config RUN.yaml] [--image FILE | --size WxH] [--gpus N] [--json]"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dyme.config import load_config
from dyme.families import ModelError
from dyme.settings.errors import ConfigError
from dyme.tools.check.lines import lines
from dyme.tools.check.report import check


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where the checkpoint can be trained, else 1 with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        cfg = load_config(options.config) if options.config else None
        report = check(options.path, cfg, read_pictures(options), options.gpus)
    except (ConfigError, ModelError) as error:
        print(f"not usable: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(report) | {"peak": report.estimate.peak}, indent=1))
    else:
        print("\n".join(lines(report)))
    if report.missing:
        print(f"not usable: {report.missing}", file=sys.stderr)
    return int(report.missing is not None)


def read_pictures(options: argparse.Namespace) -> list[Image.Image]:
    """The pictures that --image or --size describe. Raises `ConfigError`."""
    if options.size:
        return [Image.new("RGB", options.size, "white")]
    if options.image is None:
        return []
    try:
        return [Image.open(options.image).convert("RGB")]
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"--image {options.image}: cannot be read as a picture ({error})") from error


def picture_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"'{text}': write width and height in pixels, such as 600x400")
    return int(width), int(height)


def gpu_count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}': write a number of GPUs, such as 8")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyme.tools.check",
        description="Is a checkpoint supported and whole, and what would training it take?",
    )
    parser.add_argument("path", type=Path, help="local Hugging Face checkpoint folder")
    parser.add_argument("--config", type=Path, help="run YAML, for the estimate of memory and for model.max_pixels")
    add_shared(parser)
    return parser


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Options of this command and of python -m dyme.tools.memory."""
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--image", type=Path, help="a picture like those of the data")
    shown.add_argument("--size", type=picture_size, metavar="WxH", help="its size alone")
    parser.add_argument("--gpus", type=gpu_count, default=1, metavar="N", help="GPUs of the run (default 1)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")


if __name__ == "__main__":
    sys.exit(main())
