"""Packaging: `dyme` (the training system) and `dyme_kernels` (the kernels, usable without the rest)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version in dyme/__init__.py, read as text because importing dyme needs what this file installs."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "dyme/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit('setup.py: dyme/__init__.py has no line __version__ = "X.Y.Z"')
    return found[1]


def read_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="dyme",
    version=read_version(),
    description="Dynamic memorize-explore training of small vision-language models",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["dyme", "dyme.*"]), *find_packages("kernels", include=["dyme_kernels*"])],
    package_dir={"dyme_kernels": "kernels/dyme_kernels"},
    package_data={
        "dyme": ["ds_configs/*.json"],
        "dyme.report": ["templates/*"],
        "dyme.supervision": ["prompts/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.18",
        "transformers>=5.17,<6",
        "triton>=3.6; platform_system == 'Linux'",
        "datasets>=4",
        "httpx2>=2",  # the judge's client
        "jinja2",  # pages; chat templates
        "matplotlib",
        "ninja",  # DeepSpeed builds its CPU communication op with it
        "num2words",  # SmolVLM2's processor asks for it
        "numpy",
        "peft>=0.19",
        "pillow",
        "pydantic>=2",
        "pyyaml",
        "rich",
        "safetensors",
        "snowballstemmer",
        "tensorboard",
    ],
    extras_require={
        "test": [
            "cryptography",
            "fastapi",  # with openai and uvicorn: `transformers serve`
            "hypothesis",
            "import-linter",
            "kernels",  # the Hugging Face package: a test imports it beside dyme_kernels
            "liger-kernel",
            "mypy",
            "openai",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "starlette",
            "trl",
            "types-PyYAML",
            "uvicorn",
        ],
        "flash": ["flash-attn"],
        "wandb": ["wandb"],
    },
)
