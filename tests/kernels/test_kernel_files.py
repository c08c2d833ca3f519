"""Which file of dyme_kernels knows what: no circles, nothing of the extras in the core, surrogates once a backend."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import dyme_kernels

PACKAGE = Path(dyme_kernels.__file__).parent
ROOT = PACKAGE.parents[1]
FORMULAS = {"spec.py", "surrogates.py", "triton_surrogates.py"}


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dyme_kernels"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dyme_kernels")}
    return found


def graph() -> dict[str, set[str]]:
    files = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    return {name: imports(file) & set(files) for name, file in files.items()}


def test_no_circles():
    list(TopologicalSorter(graph()).static_order())  # raises CycleError


def test_the_core_knows_nothing_of_the_extras():
    extras = "dyme_kernels.extras"
    for name, imported in graph().items():
        if name != "dyme_kernels.__init__" and not name.startswith(extras):
            assert not [x for x in imported if x.startswith(extras)], name
    words = re.compile(r"vocab_parallel|shard|compile_ops|is_compiling", re.IGNORECASE)
    core = [file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    assert not [file.name for file in core if words.search(file.read_text(encoding="utf-8"))]


def test_surrogates_stand_once_a_backend():
    named = {f.name for f in PACKAGE.rglob("*.py") if re.search(r"sapo|cispo", f.read_text(encoding="utf-8"), re.I)}
    assert FORMULAS <= named <= FORMULAS | {"tokens.py"}  # the last in a docstring


def test_the_page_of_the_row_kernel_lists_files_that_exist():
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    section = page.split("## Changing the row kernel\n", 1)[1].split("\n## ", 1)[0]
    files = re.findall(r"`(\w+/[\w/]+\.py)`", section)
    assert {f"kernels/dyme_kernels/{name}" for name in FORMULAS} <= set(files)
    assert all((ROOT / file).is_file() for file in files)
