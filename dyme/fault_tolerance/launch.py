"""Shared parts of the launchers: quiet libraries, errors reported once, and the exit of a rank."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

AFTER_YOU_S = 30.0


def rank() -> int:
    """The rank of this process, from the launcher's environment; the process group need not exist yet."""
    return int(os.environ.get("RANK", "0"))


def one_node() -> bool:
    """Whether all ranks run on this node, from the launcher's environment (DeepSpeed's or torchrun's)."""
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return here == os.environ.get("WORLD_SIZE", "1")


def quiet() -> None:
    """Silences messages of libraries that would mix with those of the run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from deepspeed.utils import logger
    from transformers.utils import logging

    logger.setLevel("ERROR")
    logging.disable_progress_bar()


def say_error(error: Exception) -> int:
    """Prints a mistake of the user in one line; returns the exit code.

    The line is printed once per node, because data or weights may be missing on one node where rank 0 does not run. The
    launcher ends all processes of its node when the first one exits, so the others wait until the line is printed. A
    rank that still runs after `AFTER_YOU_S` seconds is the only one with the error, and prints it.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run takes it for a preemption
        time.sleep(AFTER_YOU_S)
        print(f"error: rank {rank()}: {error}", file=sys.stderr, flush=True)
    return 2


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and ends the process with its code."""
    try:
        code = main()
    except KeyboardInterrupt:
        if rank() == 0:
            print("SIGINT: ended before training began", file=sys.stderr)
        code = 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # interpreter exit after DeepSpeed now and then aborts when all work is done, and a failed rank must not wait
    # for others
    os._exit(code)
