"""The reference of the settings: complete, and what docs/settings.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sani_dist import cli
from sani_dist.config import Config
from sani_dist.errors import InputError
from sani_dist.settings_reference import markdown, settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_page_lists_the_settings_there_are() -> None:
    """A new option is a decision: it has to be written down here too."""
    assert PAGE.read_text() == markdown(), "python -m sani_dist.settings_reference > docs/settings.md"


def test_every_setting_says_what_it_is() -> None:
    assert [s.name for s in settings() if not s.description] == []


def test_sections() -> None:
    assert {s.name.split(".")[0] for s in settings()} == set(Config.model_fields)
    assert {s.name for s in settings("corpus.target")} == {
        "corpus.target", "corpus.target.values", "corpus.target.subjects"
    }  # fmt: skip
    with pytest.raises(InputError, match="corpus"):
        settings("corps")


def test_of_the_entries_of_a_list() -> None:
    names = {s.name for s in settings("corpus.detect")}
    assert {"corpus.detect[terms].values", "corpus.detect[presidio].patterns[].regex"} <= names


def test_the_command() -> None:
    printed = CliRunner().invoke(cli.app, ["settings", "repair.objectives"])
    assert printed.exit_code == 0
    assert "repair.objectives.unlikelihood" in printed.stdout
    assert "model.path" not in printed.stdout
