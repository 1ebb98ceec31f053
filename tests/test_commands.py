"""Every command explains itself with an example that it would accept."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import sani_dist
from sani_dist.cli import app, main
from sani_dist.errors import InputError

from . import tiny

COMMANDS: dict[str, Any] = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    if not command.hidden
}


def test_help_lists_every_command() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    assert len(COMMANDS) >= 12
    assert all(re.search(rf"\b{name}\b", done.output) for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_a_command_has_one_example_that_it_accepts(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    examples = re.findall(r"Example: (sani-dist .*?)\s*\n", done.output)
    assert len(examples) == 1
    program, command, *arguments = shlex.split(examples[0])
    assert (program, command) == ("sani-dist", name)
    # Parses the arguments and runs nothing; an option that is not there would raise.
    COMMANDS[name].make_context(name, list(arguments))


def test_without_a_command_there_is_help_and_with_a_wrong_one_a_line() -> None:
    assert "Usage" in CliRunner().invoke(app, []).output
    wrong = CliRunner().invoke(app, ["sanitise"])
    assert wrong.exit_code == 2
    assert "No such command" in wrong.output


def test_a_command_that_is_gone_says_what_to_use() -> None:
    assert "sweep" not in CliRunner().invoke(app, ["--help"]).output
    with pytest.raises(InputError, match=r"^sweep was removed in 0\.2\.0: loop over `sani-dist run"):
        CliRunner().invoke(app, ["sweep", "sweep.yaml", "--out", "sweep", "--dry-run"], catch_exceptions=False)


def test_a_package_without_the_examples_says_where_the_demo_is(tmp_path: Path) -> None:
    """As a wheel installs it: the package, and nothing beside it."""
    package = Path(sani_dist.__file__).parent
    shutil.copytree(package, tmp_path / "sani_dist", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "sani_dist.cli", "demo", "--out", "out"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: demo: it is not in the installed package; clone the repository")
    assert not (tmp_path / "out").exists()


def test_the_default_preset_needs_no_general_text(llama_folder: Path, corpus: dict[str, str], tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    text = {"source": corpus["notes"], "detect": [{"name": "terms", "values": list(tiny.CANARY_PEOPLE)}]}
    settings.write_text(yaml.safe_dump({"model": {"path": str(llama_folder)}, "corpus": text}))
    base = ["--set", f"model.base={llama_folder}"]
    found = CliRunner().invoke(app, ["run", str(settings), "--dry-run", *base], catch_exceptions=False)
    assert found.exit_code == 0
    assert "every parameter, reset: base" in found.output
    found = CliRunner().invoke(app, ["detect", str(settings), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert found.exit_code == 0


def test_an_error_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup: the extra in `pip install 'sani_dist[presidio]'` must not vanish."""
    monkeypatch.setattr("sys.argv", ["sani-dist", "run", "nothing[presidio].yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: cannot read nothing[presidio].yaml: No such file or directory\n"
