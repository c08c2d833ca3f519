"""Nothing in the repository shadows a package, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.launching import ROOT


def python(code: str) -> str:
    """Runs code in the repository root, as a user's `python` does: the root is on the path, `kernels/` is not."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


def needs(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None or importlib.util.find_spec(name).origin is None:
            pytest.skip(f"{name} is not installed")


def test_kernels_is_the_hugging_face_package():
    needs("kernels")
    assert python("import kernels; print(hasattr(kernels, 'get_kernel'))") == "True"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_benchmarks_need_nothing_of_the_tests():
    files = list((ROOT / "benchmarks").rglob("*.py"))
    assert files
    assert [file for file in files if re.search(r"^\s*(from|import) tests\b", file.read_text(), re.MULTILINE)] == []


def test_trl_and_ours_live_side_by_side():
    needs("kernels", "trl", "dyme_kernels")
    code = (
        "import kernels, transformers, trl\n"
        "from trl import GRPOTrainer\n"
        "import dyme_kernels, dyme\n"
        "print(GRPOTrainer.__name__, hasattr(kernels, 'get_kernel'), dyme_kernels.LossSpec.__name__)"
    )
    assert python(code) == "GRPOTrainer True LossSpec"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dyme", ["torch", "transformers", "deepspeed", "triton"]),
        ("dyme.config", ["torch", "transformers", "deepspeed", "triton", "matplotlib"]),
        ("dyme.data", ["torch", "transformers", "deepspeed", "triton"]),
        ("dyme.batching.plan", ["torch", "transformers", "deepspeed", "triton"]),
        ("dyme.predict.__main__", ["torch", "transformers", "deepspeed", "triton"]),
        ("dyme.predict.predictor", ["deepspeed", "dyme_kernels", "matplotlib"]),
        ("dyme.compare.__main__", ["torch", "transformers", "deepspeed", "triton", "matplotlib"]),
        ("dyme.trainer", ["matplotlib", "wandb", "trl"]),
    ],
)
def test_imports_stay_light(module, absent):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    assert python(code) == "[]"


def test_importing_starts_no_gpu():
    modules = "torch, dyme_kernels, dyme.rollout.shared_prefix, dyme.batching.objective"
    assert python(f"import {modules}; print(torch.cuda.is_initialized())") == "False"
