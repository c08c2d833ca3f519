"""The report of one rank: versions, its GPU, and (first rank of a node) disk, run folder, data and model."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import sys
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dyme
import dyme_kernels
from dyme.config import RunConfig, dump_config
from dyme.data import DataError, ImageError, load_records
from dyme.data.paths import expand
from dyme.families import ModelError
from dyme.families.files import read_config
from dyme.provenance.place import check_place
from dyme.rewards.round_trip import round_trip
from dyme.settings.errors import ConfigError

PACKAGES = ("torch", "deepspeed", "transformers", "triton", "dyme")
TOKENS = ".preflight"
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Bytes. `free`: not used by any program when this one started."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Facts:
    """A rank's report. `leader`: the first rank of its node; only these fill the fields after `gpu`.

    writable, data and model are "" or an error message; token_file names the file this node wrote into the run folder;
    contents holds {what: digest}, which must be the same on all nodes. disk_free in bytes.
    """

    rank: int
    local_rank: int
    node: str
    leader: bool
    versions: dict[str, str]
    gpu: Gpu | None
    disk_free: int = 0
    writable: str = ""
    token_file: str = ""
    data: str = ""
    model: str = ""
    contents: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Facts:
        tree: dict[str, Any] = json.loads(text)
        return Facts(**{**tree, "gpu": Gpu(**tree["gpu"]) if tree["gpu"] else None})


def gather_facts(cfg: RunConfig, rank: int, local_rank: int) -> Facts:
    """This rank's report; writes a token into the run folder on the first rank of a node."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    facts = Facts(rank, local_rank, node, not local_rank, _versions(), _gpu(local_rank))
    if local_rank:
        return facts
    # a new name, because a file system may cache for a while that an old one did not exist
    token = Path(cfg.run.dir) / TOKENS / f"{rank}-{os.urandom(8).hex()}"
    try:
        check_place(Path(cfg.run.dir))
        token.parent.mkdir(parents=True, exist_ok=True)
        with token.open("w", encoding="utf-8") as file:
            file.write(token.name)
            file.flush()
            os.fsync(file.fileno())
        facts = replace(facts, token_file=str(token), disk_free=shutil.disk_usage(token.parent).free)
    except (ConfigError, OSError) as error:
        facts = replace(facts, writable=str(error))
    contents = {"settings": _digest([dump_config(cfg)]), "code": _code()}
    try:
        contents |= _data_contents(cfg)
    except (DataError, ImageError, OSError) as error:
        facts = replace(facts, data=str(error))
    try:
        contents |= _model_contents(cfg)
    except (DataError, ModelError, OSError) as error:
        facts = replace(facts, model=str(error))
    return replace(facts, contents=contents)


def disk_needed(cfg: RunConfig) -> int:
    """Most bytes that a run writes: checkpoints (weights, float32 copy and two moments), the best, one being written
    and the export. 1 GiB where the weights are not on disk yet, or only adapters train."""
    weights = sum(p.stat().st_size for p in _model_files(cfg) if p.suffix in (".safetensors", ".bin"))
    itemsize = 4 if cfg.model.dtype == "fp32" else 2
    per_checkpoint = weights // itemsize * (itemsize + 12)
    copies = cfg.run.keep_last + 2
    return GIB if cfg.model.lora else max(GIB, copies * per_checkpoint + weights)


def _model_files(cfg: RunConfig) -> list[Path]:
    return sorted(p for p in expand(cfg.model.path).iterdir() if p.is_file()) if cfg.model.path else []


def _model_contents(cfg: RunConfig) -> dict[str, str]:
    files = _model_files(cfg)
    if files:
        read_config(files[0].parent)
    for path in files:  # the first bytes, because a listed file may not be readable
        with path.open("rb") as file:
            file.read(4096)
    return {"model": _digest([f"{p.name} {p.stat().st_size}" for p in files])}


def _data_contents(cfg: RunConfig) -> dict[str, str]:
    found = {}
    for name, source in (("data.train", cfg.data.train), ("data.eval", cfg.data.eval)):
        if source is None:
            continue
        records = load_records(source, cfg.data.max_bad_fraction, round_trip(cfg.reward, cfg.prompt))
        found[name] = _digest([r.id for r in records])
        for record in records[:: max(1, len(records) // 8)]:  # pictures all over the data
            if record.image is not None:
                record.image.load()
    return found


def _code() -> str:
    """A digest of the installed sources, because nodes with the same version may hold different commits."""
    folders = [Path(package.__path__[0]) for package in (dyme, dyme_kernels)]
    sources = {f"{folder.name}/{path.relative_to(folder)}": path for folder in folders for path in folder.rglob("*.py")}
    return _digest([f"{name} {path.read_text(encoding='utf-8')}" for name, path in sorted(sources.items())])


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout on PYTHONPATH is not installed
            found[name] = getattr(sys.modules.get(name), "__version__", "missing")
    import torch

    found["cuda"] = str(torch.version.cuda)
    return found


def _gpu(local_rank: int) -> Gpu | None:
    import torch
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cuda" or local_rank >= torch.cuda.device_count():
        return None
    free, total = torch.cuda.mem_get_info(local_rank)
    return Gpu(torch.cuda.get_device_name(local_rank), total, free)
