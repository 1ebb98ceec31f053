"""Every command explains itself with an example that it would accept."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sani_dist.cli import app, main

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


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


def test_an_error_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup: the extra in `pip install 'sani_dist[presidio]'` must not vanish."""
    monkeypatch.setattr("sys.argv", ["sani-dist", "run", "nothing[presidio].yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: cannot read nothing[presidio].yaml: No such file or directory\n"
