"""An audit of a model on 1, 2 and 3 real ranks: one result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sani_dist import api
from sani_dist.config import AuditSettings, Config

from .. import tiny

# What is counted: shares of whole numbers, and what follows from ranks.
COUNTED = (
    "greedy",
    "exact_memorization",
    "extraction_strength",
    "exposure",
    "next_token_accuracy",
    "continuation_accuracy",
    "greedy_generated",
    "top40@4",
    "teacher_forcing_confirmed",
    "regurgitated_from_prompts",
    "regurgitated_unprompted",
    "regurgitated_above_chance",
)


@pytest.fixture(scope="module")
def audits(
    make_config: Callable[..., Config], llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], list[dict[str, Any]]]:  # fmt: skip
    """By that many ranks; made once."""
    folder = tmp_path_factory.mktemp("audits")
    reference = tiny.save(tiny.llama(len(tiny_tokenizer), seed=1), tiny_tokenizer, folder / "reference")
    settings = AuditSettings(
        reference=reference, micro_rows=3, exposure_spans=4, exposure_candidates=7, continuations=9
    )
    corpus = make_config(corpus={"control": control(folder), "heldout": heldout(folder)}).corpus
    return functools.cache(lambda n: api.audit(llama_folder, corpus, folder / str(n), settings=settings, workers=n))


def control(folder: Path) -> str:
    """Ten documents, which is what an area under the curve needs."""
    lines = []
    for number in range(10):
        text = f"Patient {tiny.CONTROL_PEOPLE[number % 3]} has a cough on day {number}, record QX-555{number:02d}."
        spans = [{"start": text.index("QX-"), "end": len(text) - 1, "kind": "RECORD_NUMBER"}]
        lines.append(json.dumps({"patient": f"control-{number}", "text": text, "spans": spans}) + "\n")
    (folder / "control.jsonl").write_text("".join(lines))
    return str(folder / "control.jsonl")


def heldout(folder: Path) -> str:
    """Documents of several sentences."""
    sentence = "On visit {} the patient has a cough and is given rest and fluids."
    lines = [{"text": " ".join(sentence.format(10 * d + n) for n in range(3))} for d in range(4)]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "heldout.jsonl")


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_all_world_sizes_measure_the_same(audits: Callable[[int], list[dict[str, Any]]], workers: int) -> None:
    alone = audits(1)
    families = {m["metric"].split("@")[0].split("_")[0] for m in alone if m["value"] is not None}
    assert families >= {
        "top40",
        "teacher",
        "regurgitated",
        "greedy",
        "leak",
        "samples",
        "extraction",
        "exact",
        "exposure",
        "mia",
        "perplexity",
        "next",
        "continuation",
    }
    assert len(audits(workers)) == len(alone)
    for one, several in zip(alone, audits(workers), strict=True):
        for key in ("metric", "population", "group", "n", "reason"):
            assert one[key] == several[key], one
        for key in ("value", "low", "high"):
            exact = one[key] is None or one["metric"] in COUNTED
            assert several[key] == (one[key] if exact else pytest.approx(one[key], rel=1e-4, abs=1e-9)), one


def test_membership_is_judged_with_the_reference_too(audits: Callable[[int], list[dict[str, Any]]]) -> None:
    attacks = {m["metric"] for m in audits(3) if m["metric"].startswith("mia_")}
    assert attacks >= {"mia_loss_auc", "mia_zlib_auc", "mia_mink_auc", "mia_minkpp_auc", "mia_reference_auc"}
