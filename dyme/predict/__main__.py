"""`python -m dyme.predict --model DIR [--image FILE] QUESTION`, or `--input ROWS.jsonl|FOLDER --out ANSWERS.jsonl`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dyme.checkpoint.recipe import RecipeError
from dyme.predict.answer import Answer
from dyme.predict.outfile import begin, origin
from dyme.predict.questions import Question, folder_questions, read_questions, single_question
from dyme.predict.settings import PredictError, Settings, check_model_folder, own_dtype, resolve_settings
from dyme.settings.errors import ConfigError

if TYPE_CHECKING:
    from dyme.predict.predictor import Predictor


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 when every row of a batch failed; 2 when the questions or the model cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        _check_form(options)
        check_model_folder(options.model)
        settings, notes = resolve_settings(options)
        for note in notes:
            _say(f"note: {note}")
        return _batch(options, settings) if options.input else _single(options, settings)
    except (ConfigError, OSError, PredictError, RecipeError) as error:  # OSError: a disk that is full or not writable
        _say(f"predict: {error}")
        return 2
    except KeyboardInterrupt:
        _say("\npredict: stopped" + ("; the same command goes on from here" if options.input else ""))
        return 130


def _single(options: argparse.Namespace, settings: Settings) -> int:
    images = options.image or []
    for image in images:
        if not image.is_file():
            raise PredictError(f"--image {image}: no such picture; correct the path")
    question = single_question(options.question, images, options.choices or ())
    assert question.record is not None  # a bad one raised
    predictor = _open(options, settings)
    if question.image and not predictor.sees:
        raise PredictError(f"--image: the model in {options.model} is text-only; leave the picture out")
    [answer] = predictor.answer([question.record])
    if isinstance(answer, str):
        raise PredictError(answer)
    if options.json:
        named = [str(image) for image in images]
        shown = named if len(named) > 1 else next(iter(named), None)
        print(json.dumps({"question": question.text, "image": shown, **asdict(answer)}))
    else:
        _print_answer(answer, settings)
    return 0


def _print_answer(answer: Answer, settings: Settings) -> None:
    # a reply without a flag cannot be split, so the whole reply is shown as the trace
    trace = answer.thinking if answer.answer else answer.completion
    if trace:
        print(_shown(trace))
    print(f"Answer: {_shown(answer.answer)}" if answer.answer else "Answer: none found")
    sys.stdout.flush()
    if answer.truncated:
        _say(f"note: the reply was cut at {settings.max_new_tokens} tokens; --max_new_tokens raises the limit")
    if answer.guessed:
        _say("note: the answer is a guess: the reply does not say it plainly")
    if not answer.format and not answer.truncated and not answer.guessed:
        flag = settings.prompt.answer_flag
        expected = "some text" if settings.prompt.style == "direct" else f"'{flag}' once, with an answer after it"
        _say(f"note: the reply has no valid format, which is {expected}")


def _shown(text: str) -> str:
    """A model's escape sequences must not reach the terminal; --json and the answers file hold the text as it is."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _batch(options: argparse.Namespace, settings: Settings) -> int:
    questions = _questions(options)
    dtype = _dtype(options)
    made_from = origin(options.model, options.input, settings, dtype)
    done = begin(options.out, questions, made_from)
    if done:
        _say(f"{options.out}: going on after {len(done)} of {len(questions)} rows")
    if len(done) < len(questions):
        predictor = _open(options, settings)
        if options.input.is_dir() and not predictor.sees:
            raise PredictError(f"--input {options.input}: pictures, but the model in {options.model} is text-only")
        from dyme.predict.predictor import answer_all

        failed = answer_all(predictor, questions, done, options.out, options.batch_size)
    else:
        failed = sum("error" in row for row in done)
    told = f", {failed} of them failed (see their error)" if failed else ""
    _say(f"{len(questions)} rows -> {options.out}{told}")
    return int(failed == len(questions))


def _questions(options: argparse.Namespace) -> list[Question]:
    if options.input.is_dir():
        if not options.question:
            raise PredictError("a folder of pictures needs a question, put after --input FOLDER")
        return folder_questions(options.input, options.question)
    if not options.input.is_file():
        raise PredictError(f"--input {options.input}: no such file or folder; correct the path")
    if options.question:
        raise PredictError(f"{options.input} holds its own questions; leave the question out or give a folder")
    return read_questions(options.input)


def _open(options: argparse.Namespace, settings: Settings) -> Predictor:
    from dyme.families import ModelError  # torch and transformers take seconds to import, so paths are checked first
    from dyme.predict.predictor import open_predictor

    try:
        predictor = open_predictor(options.model, settings, options.device, _dtype(options))
    except ModelError as error:
        raise PredictError(str(error).replace("model.path", "--model")) from None
    for note in predictor.notes:
        _say(f"note: {note}")
    return predictor


def _dtype(options: argparse.Namespace) -> str:
    return own_dtype(options.model) if options.dtype == "auto" else options.dtype


def _check_form(options: argparse.Namespace) -> None:
    """Checks that argparse cannot make with a mend in one line."""
    if options.input is None:
        if options.out is not None:
            raise PredictError("--out goes with --input; a single question prints its answer")
        if not (options.question or "").strip():
            mend = "put it before --choices" if options.choices else "add it in quotes, or give --input"
            raise PredictError(f"no question; {mend}")
    else:
        for name in ("image", "choices", "json"):
            if getattr(options, name):
                raise PredictError(f"--{name} goes with a single question, --input brings its own; leave it out")
        if options.out is None:
            raise PredictError("--input needs --out ANSWERS.jsonl to write to")
    if options.direct and options.flag is not None:
        raise PredictError("--direct has no flag; leave out --flag or --direct")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyme.predict",
        description="Answers questions with a local checkpoint, using the prompt it was trained with (dyme.json).",
    )
    add = parser.add_argument
    add("question", nargs="?", help="one question; with --input FOLDER the question for every picture")
    add("--model", type=Path, required=True, help="Hugging Face folder, such as the export/ of a run")
    add("--image", type=Path, action="append", help="picture that the question is about; again for several")
    add("--choices", nargs="+", metavar="CHOICE", help="options of a multiple-choice question")
    add("--json", action="store_true", help="print one JSON object")
    add("--input", type=Path, help="a .jsonl of questions, or a folder of pictures")
    add("--out", type=Path, help="answers file of --input; the same command again goes on where it stopped")
    add("--batch_size", type=_at_least_one, default=16, help="rows decoded at once (default 16)")
    add("--config", type=Path, help="run YAML whose prompt and max_new_tokens to use")
    add("--template", help="user turn; {question} and {flag} are filled in")
    add("--flag", help="text that announces the answer")
    add("--direct", action="store_true", help="ask for the answer alone, without thinking")
    add("--max_new_tokens", type=_at_least_one, help="cut replies here")
    add("--temperature", type=_temperature, default=0.0, help="0 is greedy (default)")
    add("--seed", type=int, default=0, help="seed of sampling at a temperature")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16"), help="auto: that of the checkpoint")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
