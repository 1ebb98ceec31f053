"""constraints.txt is the lock file: it has every package that an installation brings, and whatever else names a version names the same."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = {
    canonicalize_name(line.split("==")[0]): line.strip().split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
AIRGAPPED = (ROOT / "docs" / "airgapped.md").read_text()
# torch brings these with its build for GPUs, pinned by itself; and with that build alone.
OF_TORCH = ("nvidia-", "cuda-")


def installed_for(requirement: Requirement, seen: set[tuple[str, str]]) -> set[str]:
    """Names of all that a requirement brings, by the metadata of what is installed here."""
    names = {canonicalize_name(requirement.name)}
    found = distribution(requirement.name)
    for extra in {"", *requirement.extras}:
        if (key := (canonicalize_name(requirement.name), extra)) in seen:
            continue
        seen.add(key)
        for line in found.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                names |= installed_for(needed, seen)
    return names


@pytest.mark.parametrize("extra", ["presidio", "test"])
def test_every_package_that_is_installed_is_locked_at_its_version(extra: str) -> None:
    names = installed_for(Requirement(f"sani_dist[{extra}]"), set()) - {"sani-dist"}
    assert len(names) > 80
    unlocked = {name for name in names if name not in LOCK and not name.startswith(OF_TORCH)}
    # pip itself and what it is made of come with Python.
    assert unlocked <= {"pip", "setuptools", "wheel"}
    for name in names & LOCK.keys():
        # The local part, +cpu or +cu130, says for what torch was built.
        assert Version(distribution(name).version).public == LOCK[name], name


@pytest.mark.parametrize("text", [DOCKERFILE, AIRGAPPED], ids=["Dockerfile", "airgapped.md"])
def test_every_installation_takes_the_lock_and_the_same_extra(text: str) -> None:
    lines = [line for line in text.splitlines() if re.search(r"pip (install|wheel|download) ", line)]
    assert lines
    for line in lines:
        words = shlex.split(line[line.index("pip ") :])
        assert words[words.index("-c") + 1] == "constraints.txt"
        assert words[-1] in (".[presidio]", "sani_dist[presidio]")
        assert not any("==" in word for word in words)


def test_the_image_has_what_the_installation_reads() -> None:
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "ds_configs", "sani_dist"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


def test_versions_that_are_named_elsewhere_are_those_of_the_lock() -> None:
    job = yaml.safe_load((ROOT / "launch" / "kuberay_rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    python = re.search(r"^FROM python:(\d+\.\d+)-", DOCKERFILE, re.MULTILINE)
    assert python is not None
    assert f"Python {python[1]}" in (ROOT / "launch" / "kuberay_rayjob.yaml").read_text()
    assert f"Python ({python[1]})" in AIRGAPPED
    for pin in re.findall(r'"([\w.\[\],-]+)==([\w.]+)[;"]', (ROOT / "pyproject.toml").read_text()):
        assert LOCK[canonicalize_name(pin[0].split("[")[0])] == pin[1], pin[0]
