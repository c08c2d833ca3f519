"""Options and fixtures of all tests; functions that they share are in tests/helpers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.checkpoints.common import write_checkpoint
from tests.helpers.checkpoints import makers
from tests.helpers.features import Features, tell
from tests.helpers.interpreter import interpret_triton
from tests.helpers.launching import run_on_ranks
from tests.helpers.tiny import TINY

pytest.register_assert_rewrite("tests.helpers.runs")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell has its background jobs ignore SIGINT, nohup SIGHUP; programs that tests start would inherit it
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
if not torch.cuda.is_available():
    interpret_triton()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--features", type=Path, help="write what the tests say about every family, for docs/models.md")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--features"):
        config.pluginmanager.register(Features(config.getoption("--features")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tell(item)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random inputs are the same whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_spec() -> SimpleNamespace:
    """The smallest model.from_scratch."""
    return SimpleNamespace(**TINY)


@pytest.fixture
def alone(monkeypatch) -> Iterator[None]:
    """This process as the only rank."""
    from dyme.engine.train_engine import init_distributed  # seconds, which tests without it need not wait

    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
        monkeypatch.setenv(key, "")  # so that it is gone again afterwards
        monkeypatch.delenv(key)
    init_distributed(0)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets."""
    if "DYME_DATA" not in os.environ:
        pytest.skip("DYME_DATA is not set: point it at the folder of real data sets")
    return Path(os.environ["DYME_DATA"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its name."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            write_checkpoint(root / name, makers()[name][1]())
        return root / name

    return folder


@pytest.fixture(scope="module", params=sorted(makers()))
def opened(request: Any, checkpoint: Callable[[str], Path]) -> tuple[Any, Any]:
    """Family and model (float32, eval mode) of every tiny checkpoint."""
    from dyme.families import load_family

    family, model = load_family(checkpoint(request.param))
    return family, model.eval()


@pytest.fixture
def run_ranks() -> Callable[..., str]:
    """See `run_on_ranks`."""
    return run_on_ranks
