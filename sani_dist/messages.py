"""The one place that makes messages safe: what an error line, a table or a log may show of what came from outside.

A line says where something is wrong (which setting, file, record) and what would be right, never what was found there: a header may be a
patient, a wrong setting a term. Imports nothing of ours.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable

MOST_CHARACTERS = 2000
# Names of columns that can be shown, since they name no one; any other may be a value, as in a CSV file without a header.
USUAL_COLUMNS = frozenset((
    "annotations", "answer", "body", "check", "class", "completion", "content", "context", "conversations",
    "date", "doc", "document", "documents", "end", "entities", "ents", "file", "folder", "id", "input",
    "instruction", "kind", "label", "labels", "letter", "message", "messages", "meta", "metadata", "note",
    "notes", "output", "patient", "privacy_mask", "prompt", "question", "record", "report", "response",
    "sentence", "source_text", "span", "spans", "start", "subject", "summary", "text", "texts", "title",
    "transcript",
))  # fmt: skip


def one_line(text: object) -> str:
    """Text as one line of bounded length; line ends and whatever a terminal would obey are escaped."""
    said = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]}..."


def plain(text: object) -> str:
    """The same for rich, which would take "[bold]" in it for markup."""
    from rich.markup import escape  # not for a rank, which has no terminal

    return escape(one_line(text))


def columns(names: Iterable[object]) -> str:
    """Which columns a record has: usual names, and how many others."""
    found = list(map(str, names))
    usual = [name for name in found if name in USUAL_COLUMNS]
    others = len(found) - len(usual)
    counted = [] if not others else [f"{others} {'other' if usual else 'unusual'} column{'s' * (others != 1)}"]
    return ", ".join([*usual, *counted]) or "none"


def column(name: str) -> str:
    """A column that a setting names."""
    return f"column `{name}`" if name in USUAL_COLUMNS else "column of the name that the settings give"


def trace(error: BaseException) -> str:
    """Where an error that nobody expected came from, causes first: types, files and lines of code, and none of its words."""
    said: list[str] = []
    at: BaseException | None = error
    while at is not None and len(said) < 10:
        said.append("".join(traceback.format_tb(at.__traceback__)) + type(at).__name__)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\nled to\n".join(reversed(said))
