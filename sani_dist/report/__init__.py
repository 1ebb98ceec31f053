"""The report of a run: report.json, and from it a page and a model card. Also whether the run keeps its limits.

Reads what the run folder holds of evidence, never its text, tokens or weights, and needs no torch.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from sani_dist.config import VerifySettings
from sani_dist.files import write_text
from sani_dist.report.document import describe
from sani_dist.report.evidence import read_evidence
from sani_dist.report.limits import Outcome, check
from sani_dist.report.page import model_card, page
from sani_dist.run import Run, build

__all__ = ["Outcome", "verify", "write_report"]

CARD = "MODEL_CARD.md"


def write_report(run: Run, limits: VerifySettings | None = None) -> list[Path]:
    """The stage `report`: write report/report.json, index.html and MODEL_CARD.md; returns them. Raises InputError for a run without audits.

    `limits`: those of the run's settings by default. The card also becomes the README.md of the exported model, unless somebody has
    written another one there.
    """
    document = describe(run, read_evidence(run), limits or run.config.verify)
    folder, card = run.path("report"), model_card(document)
    folder.mkdir(exist_ok=True)
    _put_beside_the_model(run, card)
    contents = {"report.json": json.dumps(document, indent=1) + "\n", "index.html": page(document), CARD: card}
    written = [build(folder / name, partial(write_text, text)) for name, text in contents.items()]
    run.mark_done("report", written)
    return written


def verify(run: Run, limits: VerifySettings | None = None) -> list[Outcome]:
    """One outcome for each limit that is set, here or in the run's settings. Raises InputError for a run without audits."""
    return check(limits or run.config.verify, read_evidence(run))


def _put_beside_the_model(run: Run, card: str) -> None:
    """The card as README.md, where there is none yet or the one we wrote before."""
    readme, before = run.path("model", "README.md"), run.path("report", CARD)
    ours = before.read_text(encoding="utf-8") if before.exists() else None
    if readme.parent.is_dir() and (not readme.exists() or readme.read_text(encoding="utf-8") == ours):
        build(readme, partial(write_text, card))
