"""The tables of docs/families.md that say which families were carried through: the tests that prove a row write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEADER = ["| family | load | units of a block | erase | audit | repair | export |", "|---|---|---|---|---|---|---|"]


def row_of(facts: Mapping[str, Any], erases: bool, audits: bool) -> str:
    """`facts`: what `families_work` wrote down of a family."""
    load = "through transformers"
    if facts["streamed"]:
        load = "streamed" if facts["one_to_one"] else "streamed, experts joined"
    neurons, heads = facts["units"]
    cells = (load, f"{neurons} neurons, {heads} heads", erases, audits, facts["step"] == 1, facts["export_equal"])
    return " | ".join({True: "yes", False: "no"}.get(cell, cell) for cell in cells)


def assert_in_docs(name: str, rows: Mapping[str, str]) -> None:
    """`rows`: the row of each family. `name`: that of the marks around the table."""
    lines = [*HEADER, *(f"| {family} | {row} |" for family, row in rows.items())]
    document = PAGE.read_text()
    begin, end = (document.index(mark) for mark in (f"<!-- {name} -->", f"<!-- end of {name} -->"))
    written = document[begin:end].splitlines()[1:]
    assert written == lines, f"docs/families.md: put these lines between the marks of {name}:\n" + "\n".join(lines)


def holds(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except AssertionError:
        return False
    return True
