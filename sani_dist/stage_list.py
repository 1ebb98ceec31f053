"""The stages of a run, in order: what each reads of the settings, and the function that does it.

Light on purpose: whoever asks which stages are done needs no torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """reads: sections of the settings, beside those of the stages before it. function: in `sani_dist/stages/`, called on every rank with
    its `Rank`; it returns the files that the stage wrote. `prepare` is done before ranks start, `report` when they have ended."""

    name: str
    reads: tuple[str, ...] = ()
    function: str | None = None


STAGES = (
    Stage("prepare", ("corpus",)),
    Stage("audit-before", ("audit",), "audit:before"),
    Stage("erase", ("erase",), "erase:run"),
    Stage("repair", ("repair",), "repair:run"),
    Stage("audit-after", (), "audit:after"),
    Stage("export", (), "export:run"),
    Stage("attack", ("attack", "audit"), "attack:run"),
    Stage("report", ("verify",)),
)
ORDER = tuple(stage.name for stage in STAGES)


def sections_read(name: str) -> list[str]:
    """Sections of the settings that a stage depends on: the model, its own, and those of the stages before it."""
    return ["model", *(section for stage in STAGES[: ORDER.index(name) + 1] for section in stage.reads)]
