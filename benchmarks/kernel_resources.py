"""Registers, spills and shared memory of the Triton kernels, compiled ahead of time; needs no GPU.

    python -m benchmarks.kernel_resources [--arch 80 90 100] [--case TEXT ...] [--json FILE]

Exits with 1 where a kernel spills: a spilled register goes through the memory that these kernels are bound by.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dyme_kernels import triton_groups, triton_rows, triton_sampling, triton_scale
from dyme_kernels.advantages import SAME_ACCURACY

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FLOATS = (
    *("inverse", "inverse_memorize", "scale", "softcap", "lower", "upper", "delta", "cap", "tau_pos", "tau_neg"),
    *("beta", "entropy_coef", "temperature", "penalty"),
)
TYPES = {
    **dict.fromkeys(FLOATS, "fp32"),
    **dict.fromkeys(("n", "stride", "out_stride", "score_stride", "seen_stride"), "i32"),
    **dict.fromkeys(("rows", "targets", "offsets", "counts_out", "keys", "positions", "tokens"), "*i64"),
    **dict.fromkeys(("memorize", "scored", "seen", "banned"), "*i1"),
    "indices": "*i32",
    "epsilon_bits": "i64",
}
GROUP_ARRAYS = (
    *("logits", "out", "x", "rewards", "accuracy", "advantages", "means", "variances", "stds"),
    *("accuracy_means", "accuracy_vars"),
)
OPTIONAL = (
    *("rows", "inverses", "olds", "refs", "memorize", "importance", "es", "accuracy", "scored", "scores", "seen"),
    "banned",
)


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, the dtype of its large array, and its compile-time constants."""

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, Any]
    options: dict[str, int]
    given: tuple[str, ...] = ()
    """Optional arguments that are passed."""


def cases() -> list[Case]:
    """Every kernel at the vocabularies of the models we train, plain and with every option."""
    out = []
    for vocabulary in (151936, 49280, 32003, 257):
        for dtype in ("bf16", "fp32"):
            options = triton_rows.compile_options(vocabulary)
            head = {"V": vocabulary, "BLOCK": options.pop("BLOCK"), "SCALE": False, "CAP": False}
            loss = {**head, "KIND": 0, "SHAPED": False, "BETA": False, "BONUS": False, "GRAD": True}
            every = {**loss, "CAP": True, "KIND": 2, "SHAPED": True, "BETA": True, "BONUS": True}
            kinds: list[tuple[str, Any, dict[str, Any], tuple[str, ...]]]
            kinds = [("losses", triton_rows._losses_kernel, loss, ("memorize",))]
            if dtype == "bf16":
                kinds += [
                    ("losses, all options", triton_rows._losses_kernel, every, OPTIONAL),
                    ("statistics", triton_rows._statistics_kernel, head, ()),
                    ("gradient", triton_rows._gradient_kernel, head, ("es",)),
                ]
            for name, kernel, constants, given in kinds:
                out.append(Case(f"{name} V={vocabulary} {dtype}", kernel, dtype, constants, options, given))
            out += sampling_cases(vocabulary, dtype)
    groups = {"DIVIDE": True, "BLOCK": triton_groups.BLOCK, "SAME": SAME_ACCURACY}
    for dtype in ("fp32", "fp64"):
        out.append(Case(f"groups {dtype}", triton_groups._groups_kernel, dtype, groups, {"num_warps": 1}, OPTIONAL))
    scale = {"BLOCK": triton_scale.BLOCK}
    out.append(Case("scale bf16", triton_scale._scale_kernel, "bf16", scale, {"num_warps": triton_scale.WARPS}))
    return out


def sampling_cases(vocabulary: int, dtype: str) -> list[Case]:
    """Both kernels of `sample_tokens`, with banned tokens only, and for bf16 with the repetition penalty, with finished
    scores, and greedy."""
    parts, width = triton_sampling.slices(vocabulary)
    kinds: dict[str, tuple[str, ...]] = {"": ("banned",)}
    if dtype == "bf16":
        kinds |= {", penalty": ("banned", "seen"), ", scores": ("scores",), ", greedy": ("banned",)}
    out = []
    for kind, given in kinds.items():
        constants = {"V": vocabulary, "BLOCK": triton_sampling.BLOCK, "GREEDY": kind == ", greedy"}
        for step, kernel, more, warps in (
            ("slices", triton_sampling._slices_kernel, {"WIDTH": width}, triton_sampling.WARPS),
            ("merge", triton_sampling._merge_kernel, {"PARTS": parts}, triton_sampling.MERGE_WARPS),
        ):
            name = f"sampling {step}{kind} V={vocabulary} {dtype}"
            out.append(Case(name, kernel, dtype, constants | more, {"num_warps": warps}, given))
    return out


def usage(case: Case, arch: int) -> dict[str, Any]:
    """Compiles a case for compute capability arch / 10, and what ptxas says of it. registers: per thread; spilled:
    bytes a thread; shared: bytes a program."""
    kernel = case.kernel
    absent = [name for name in OPTIONAL if name in kernel.arg_names and name not in case.given]
    constants = {**case.constants, **dict.fromkeys(absent)}
    large = GROUP_ARRAYS if "offsets" in kernel.arg_names else ("logits", "out", "x")
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        array = f"*{case.dtype}" if name in large else "*fp32"
        signature[name] = "constexpr" if name in constants else TYPES.get(name, array)
        pointer, whole = signature[name].startswith("*"), constants.get("V", 1) % 16 == 0
        if (pointer and not kernel.params[i].do_not_specialize_on_alignment) or ("stride" in name and whole):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers for {case.name}:\n{said}")
    registers, stack, local = map(int, found.groups())
    row = {"case": case.name, "arch": arch, "registers": registers, "spilled": stack + local}
    return row | {"shared": built.metadata.shared, "warps": case.options["num_warps"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capability times 10")
    parser.add_argument("--case", nargs="+", default=[""], help="only the cases whose name holds one of these texts")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    args = parser.parse_args()
    chosen = [case for case in cases() if any(text in case.name for text in args.case)]
    if not chosen:
        parser.error(f"--case {' '.join(args.case)}: no case has that in its name, such as 'losses V=257 bf16'")
    rows = [usage(case, arch) for case in chosen for arch in args.arch]
    print("| kernel | sm | registers | spilled bytes | shared bytes | warps |\n|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(row["spilled"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
