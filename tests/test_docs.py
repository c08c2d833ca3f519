"""README and docs against the repository: links, paths, setting names, YAML, and the generated configuration page."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import TypeAdapter

from benchmarks.fixtures.tiny_checkpoints import makers
from dyme.config import RunConfig
from tests.helpers.launching import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("dyme", "kernels", "launchers", "configs", "ds_configs", "docs", "tests")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


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


def exists(name: str) -> bool:
    if "/" in name or (ROOT / name).exists():
        return (ROOT / name).exists()
    return any(True for folder in FOLDERS for _ in (ROOT / folder).rglob(name))


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


def test_the_readme_has_a_complete_example() -> None:
    blocks = yaml_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert any({"model", "data"} <= set(yaml.safe_load(block)) for block in blocks)


def test_configuration_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == generator().render(), "docs/configuration.md is out of date: python docs/make_configuration.py"


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
