"""README and docs against the repository: links, paths, symbols, setting names, YAML, and the generated pages."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import TypeAdapter

from dyme.config import RunConfig
from tests.helpers.checkpoints import makers
from tests.helpers.launching import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("dyme", "kernels", "launchers", "configs", "ds_configs", "docs", "tests")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# Where docs name a symbol and its file: `name`, `Class.member` in `path.py`; a row | `Class` | ... | `path.py` |.
NAMES = r"(`[A-Za-z_][\w.]*(?:\(\))?`(?:(?:, | and )`[A-Za-z_][\w.]*(?:\(\))?`)*)"
PLACED = re.compile(NAMES + r" (?:in |of |\()`([\w./]+\.py)`")
TABLED = re.compile(r"^\| " + NAMES + r" \|.*\| ([^|]*\.py`[^|]*) \|$", re.MULTILINE)
IMPORTED = re.compile(r"^ *from ((?:dyme|dyme_kernels)[\w.]*) import ([\w, ]+)$", re.MULTILINE)
MEMBER = re.compile(r"`([A-Z]\w*[a-z]\w*)\.(\w+)(?:\([^`]*\))?`")
DOTTED = re.compile(r"(?<![\w./-])(?:dyme|dyme_kernels|tests|benchmarks)(?:\.(?!json)\w+)+")


def generator(name: str = "make_configuration") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def yaml_blocks(text: str) -> list[str]:
    """Fenced and indented blocks whose first line starts with `method:` or `data:`."""
    fenced = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = [re.sub(r"^ {4}", "", b, flags=re.MULTILINE) for b in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)]
    return [block for block in (*fenced, *indented) if block.startswith(("method:", "data:"))]


def is_path(name: str) -> bool:
    """A path into the repository, rather than an expression, a command or a file of a run folder."""
    return bool(re.fullmatch(r"[\w./-]+", name)) and (name.split("/")[0] in FOLDERS or name.endswith((".py", ".txt")))


def files(name: str) -> list[Path]:
    """The files that a page may mean by a path, or by a file's name alone."""
    if "/" in name or (ROOT / name).exists():
        return [path for path in [ROOT / name] if path.exists()]
    return [path for folder in FOLDERS for path in (ROOT / folder).rglob(name)]


def defined(body: Sequence[ast.stmt]) -> set[str]:
    """Names that the statements of a module or class define, assign or import."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@cache
def symbols(path: Path) -> dict[str, set[str]]:
    """The members of each class of a file, among them attributes of self and bases; under "" the names of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {"": defined(tree.body)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            attributes = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
            stored = {part.attr for part in attributes if isinstance(part.ctx, ast.Store)}
            found[node.name] = defined(node.body) | stored | {f"({ast.unparse(base)})" for base in node.bases}
    return found


@cache
def classes() -> dict[str, set[str]]:
    """The members of every class by its name; classes of one name are taken together."""
    found: dict[str, set[str]] = {}
    for folder in ("dyme", "kernels", "launchers", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, members in symbols(path).items():
                found[name] = found.get(name, set()) | members
    return found


def has_member(cls: str, member: str, known: dict[str, set[str]] | None = None) -> bool:
    """Whether a class, one of `known` or else of any file, has this member itself or by its bases."""
    members = (known or {}).get(cls) or classes().get(cls, set())
    return member in members or any(has_member(base.strip("()"), member) for base in members if base[0] == "(")


def resolves(name: str, path: Path) -> bool:
    """Whether a file has `name`, or `Class.name` through the class or its bases."""
    first, _, member = name.removesuffix("()").partition(".")
    found = symbols(path)
    return first in found[""] and (not member or has_member(first, member, found))


def find_module(dotted: str) -> tuple[Path, str] | None:
    """The file of a dotted name and what is left of the name; None where no module begins it."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        for root in (ROOT, ROOT / "kernels"):
            base = root.joinpath(*parts[:length])
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                if path.exists():
                    return path, ".".join(parts[length:])
    return None


def exists(name: str) -> bool:
    return bool(files(name))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_exist(page: Path) -> None:
    names = set(CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))))
    missing = sorted(name for name in names if is_path(name) and not exists(name))
    assert not missing, f"{page.name} names what is not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_symbols_exist(page: Path) -> None:
    """Each name is in the file that the page gives for it, each member in its class, each dotted name in its module."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    stale = []
    for names, places in [*PLACED.findall(" ".join(text.split())), *TABLED.findall(text)]:
        paths = [path for place in re.findall(r"[\w./]+\.py", places) for path in files(place)]
        stale += [f"{name} in {places}" for name in CODE.findall(names) if not any(resolves(name, p) for p in paths)]
    stale += [f"{cls}.{member}" for cls, member in MEMBER.findall(text) if not has_member(cls, member)]
    whole = page.read_text(encoding="utf-8")
    imported = [f"{module}.{name}" for module, names in IMPORTED.findall(whole) for name in names.split(", ")]
    for dotted in DOTTED.findall(whole) + imported:
        found = find_module(dotted)
        if not found or (found[1] and not resolves(found[1], found[0])):
            stale.append(dotted)
    assert not stale, f"{page.name} names symbols that are not there: {'; '.join(stale)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_exist(page: Path) -> None:
    known = generator().keys()
    sections = "|".join(RunConfig.model_fields)
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = {key for key in re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:[=:][^`]*)?`", text) if not key.endswith(".py")}
    assert not named - known, f"{page.name} names settings that do not exist: {', '.join(sorted(named - known))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_fits_the_schema(page: Path) -> None:
    for block in yaml_blocks(page.read_text(encoding="utf-8")):
        tree = yaml.safe_load(block)
        assert set(tree) <= set(RunConfig.model_fields), f"{page.name}: {block}"
        if {"model", "data"} <= set(tree):
            RunConfig.model_validate(tree)
        for name, value in tree.items():
            TypeAdapter(RunConfig.model_fields[name].annotation).validate_python(value)


def test_layers_are_those_of_the_lint() -> None:
    checked = (ROOT / "pyproject.toml").read_text().partition("\nlayers = [")[2]
    section = (
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Layers")[2].partition("##")[0]
    )
    drawn = re.findall(r"^    (\S.*?)  ", section, re.MULTILINE)
    assert drawn == re.findall(r'^  "(.+)",$', checked, re.MULTILINE)


def test_the_readme_has_a_complete_example() -> None:
    blocks = yaml_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert any({"model", "data"} <= set(yaml.safe_load(block)) for block in blocks)


def test_configuration_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == generator().render(), "docs/configuration.md is out of date: python docs/make_configuration.py"


def test_table_of_metrics_is_current() -> None:
    make = generator("make_metrics")
    text = make.PAGE.read_text(encoding="utf-8")
    assert text == make.page(text), "docs/report.md is out of date: python docs/make_metrics.py"


def test_models_page_is_current() -> None:
    """The table is what the tests said; every family and every tiny checkpoint is in it, and nothing failed."""
    make = generator("make_models")
    runs = json.loads(make.RESULTS.read_text(encoding="utf-8"))
    text = make.PAGE.read_text(encoding="utf-8")
    assert text == make.page(text, runs), "docs/models.md is out of date: python docs/make_models.py"
    for run in runs:
        held = {(family, checkpoint) for family, results in run["results"].items() for checkpoint in results}
        assert held == {(family, name) for name, (family, _) in makers().items()}, "run make models again"
    assert "no**" not in text and "not tested" not in text
