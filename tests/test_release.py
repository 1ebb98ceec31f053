"""One version everywhere, and what a release and a newcomer read is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# [text](target), not an image; and `path` in backquotes with a folder in it.
LINK = re.compile(r"(?<!!)\[[^]]+\]\(([^)#]+)(?:#[^)]*)?\)")
PAGES = sorted(
    path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"))
)


def test_the_version_is_the_newest_of_the_changelog_and_that_to_cite() -> None:
    versions = re.findall(
        r"^## (\d+\.\d+\.\d+) \((?:unreleased|\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert versions[0] == VERSION
    assert versions == sorted(versions, key=lambda v: tuple(map(int, v.split("."))), reverse=True)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall((ROOT / page).read_text()) if "://" not in target]
    assert [target for target in targets if not (ROOT / page.parent / target).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    """The tour, and the test of each promise."""
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:sani_dist|tests|docs|benchmarks|\.ci)/[\w./]*)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_workflows_run_the_scripts_of_the_repository() -> None:
    for name, script in (("ci", ".ci/run"), ("release", ".ci/release")):
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
        steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert any(script in step for step in steps)
        assert (ROOT / script).stat().st_mode & 0o100


def test_templates_of_issues_have_a_name_a_description_and_a_body() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= yaml.safe_load(path.read_text()).keys()


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "sani_dist" / "py.typed").exists()
