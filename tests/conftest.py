"""Shared fixtures: paths, a tiny model, and a way to run a program on several ranks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import makers
from checkpoints.common import write_checkpoint
from features import Features, tell
from interpreter import interpret_triton
from tiny import TINY

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "kernels"))
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
    """Runs a Python program on n ranks through torchrun; returns its output, fails with it when a rank fails."""
    return run_on_ranks


def open_processor(folder: Path) -> Any:
    """The processor of an exported folder through transformers' auto class. transformers 5.17 finds no image processor
    there without torchvision; the family's loader has to do then."""
    from transformers import AutoProcessor, __version__

    from dyme.families import load_family

    if __version__.startswith("5.17.") and importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ValueError, match="torchvision"):
            AutoProcessor.from_pretrained(folder)
        return load_family(folder)[0].processor
    return AutoProcessor.from_pretrained(folder)


def environment() -> dict[str, str]:
    """Of a launched program: like a user's, so without Triton's interpreter, and without the process group that a test
    in this process may have joined."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    bin_dir = str(Path(sys.executable).parent)
    ours = {"TRITON_INTERPRET", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PATH": bin_dir + os.pathsep + os.environ["PATH"],
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def run_on_ranks(n: int, *program: object, timeout: float = 300) -> str:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={n}",
        *map(str, program),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def launch(
    *arguments: object,
    ranks: int = 2,
    timeout: float = 300,
    check: bool = True,
    launcher: str = "train.py",
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus N launchers/train.py ...` (or another launcher) as a user types it."""
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    port = 20000 + os.getpid() % 20000
    command = [deepspeed, f"--num_gpus={ranks}", f"--master_port={port}", f"launchers/{launcher}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done
