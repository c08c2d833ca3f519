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
from dyme.tools.check.report import Picture, Report, check


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


def lines(report: Report) -> list[str]:
    """The report as text."""
    shares = [f"{name} {_millions(count)}" for name, count in report.parts.items()]
    tied = " (shared with the embedding)" if report.tied else ""
    return [
        f"{report.path}: {report.model_type}, family {report.family}",
        *table(
            [
                ("parameters", f"{_millions(report.parameters)}: {', '.join(shares)}{tied}"),
                ("weights", _weights(report)),
                ("decoder", f"{report.layers} layers, context of {report.context or 'unknown'} tokens"),
                ("chat template", report.chat_template),
                ("text prompt", f"{report.text_prompt} tokens"),
                *(("picture", _picture(picture, report.context)) for picture in report.pictures),
                *report.special.items(),
                ("packed groups", "yes" if report.packs else "no: each reply trains with its own prompt"),
            ]
        ),
        "",
        f"memory per GPU, an estimate ({report.run}, {_millions(report.trained)} parameters trained)",
        *_estimate(report),
    ]


def _weights(report: Report) -> str:
    if report.files is None or report.dtypes is None:
        return "missing"
    kinds = ", ".join(f"{name} {_millions(count)}" for name, count in report.dtypes.items())
    unused = f"; {len(report.unused)} tensors are not used, first {report.unused[0]}" if report.unused else ""
    files = len(report.files)
    return f"{files} file{'s' if files > 1 else ''}, {in_bytes(sum(report.files.values()))}, {kinds}{unused}"


def _picture(picture: Picture, context: int | None) -> str:
    resized = f", resized to {picture.resized[0]}x{picture.resized[1]}" if picture.resized else ""
    over = ", MORE THAN THE CONTEXT" if context and picture.prompt > context else ""
    width, height = picture.size
    return f"{width}x{height}{resized}: {picture.tokens} image tokens, prompt of {picture.prompt}{over}"


def _estimate(report: Report) -> list[str]:
    estimate = report.estimate
    parts = {
        "stays": estimate.stays,
        "in an update": estimate.update,
        "in a rollout": estimate.rollout,
        "in a refresh": estimate.refresh,
        "in an evaluation": estimate.evaluation,
        "on the host": estimate.host,
    }
    rows = []
    for title, part in parts.items():
        if part:
            rows.append((title, in_bytes(sum(part.values()))))
            rows += [(f"  {name}", in_bytes(size)) for name, size in part.items()]
    return table([*rows, ("peak", f"{in_bytes(estimate.peak)} (what stays, and the largest of what comes and goes)")])


def table(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M" if count >= 1e4 else str(count)


def in_bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.2f} MiB"


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
