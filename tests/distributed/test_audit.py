"""An audit of a model on 1, 2 and 3 real ranks: one result."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sani_dist import api
from sani_dist.audit.copying import CopyingRows
from sani_dist.audit.spans import Corpus
from sani_dist.audit.use import METRICS
from sani_dist.config import AuditSettings, Config
from sani_dist.corpus.rows import PackedRows, Rows

from .. import tiny
from . import plain

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
    "copied",
    "copied_appended",
    "value_form",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in it for each number of ranks."""
    return tmp_path_factory.mktemp("audits")


@pytest.fixture(scope="module")
def audits(
    make_config: Callable[..., Config], llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Callable[[int], list[dict[str, Any]]]:
    """By that many ranks; made once."""
    reference = tiny.save(tiny.llama(len(tiny_tokenizer), seed=1), tiny_tokenizer, folder / "reference")
    settings = {"reference": str(reference), "exposure_spans": 4, "exposure_candidates": 7, "continuations": 9}
    config = functools.partial(
        make_config,
        # The reference is the base too: what is said of both must be the same.
        model={"path": str(llama_folder), "base": str(reference), "dtype": "float32"},
        corpus={"control": control(folder), "heldout": heldout(folder)},
        erase={"layers": 0},
        audit={"samples": AuditSettings().samples, "generation": {}, **settings},
    )

    def audited(workers: int) -> list[dict[str, Any]]:
        run = api.sanitize(config(cluster={"workers": workers}), folder / str(workers), stages=api.AUDIT_STAGES)
        of_base = [{**m, "population": f"{m['population']} of the base"} for m in api.measurements(run, "base")]
        return [*api.measurements(run, "before"), *of_base]

    return functools.cache(audited)


def control(folder: Path) -> str:
    """Ten documents, which is what an area under the curve needs."""
    lines = []
    for number in range(10):
        code = f"QX-555{number:02d}"
        text = f"Patient {tiny.CONTROL_PEOPLE[number % 3]} has a cough on day {number}, record {code}. Code {code}."
        spans = [
            {"start": match.start(), "end": match.end(), "kind": "RECORD_NUMBER"} for match in re.finditer(code, text)
        ]
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
        "copied",
        "value",
    }
    uses = {(m["metric"], m["population"]) for m in alone if m["value"] is not None and not m["group"]}
    asked = {(metric, population) for metric in METRICS for population in ("control", "control of the base")}
    assert asked - uses == {("value_form", "control of the base")}  # nothing is written by the base
    assert len(audits(workers)) == len(alone)
    for one, several in zip(alone, audits(workers), strict=True):
        for key in ("metric", "population", "group", "n", "reason"):
            assert one[key] == several[key], one
        for key in ("value", "low", "high"):
            exact = one[key] is None or one["metric"] in COUNTED
            assert several[key] == (one[key] if exact else pytest.approx(one[key], rel=1e-4, abs=1e-9)), one


def test_the_base_is_asked_as_the_audited_model_is(
    audits: Callable[[int], list[dict[str, Any]]], llama_folder: Path
) -> None:
    """Other weights, so other figures; but the very same values and tokens."""
    own, base = (
        {m["metric"]: m for m in audits(1) if m["metric"] in METRICS and m["population"] == name and not m["group"]}
        for name in ("control", "control of the base")
    )
    for metric, found in base.items():
        assert found["n"] == own[metric]["n"]
    assert own["value_logprob"]["value"] != pytest.approx(base["value_logprob"]["value"], rel=1e-3)


def test_membership_is_judged_with_the_reference_too(audits: Callable[[int], list[dict[str, Any]]]) -> None:
    attacks = {m["metric"] for m in audits(3) if m["metric"].startswith("mia_")}
    assert attacks >= {"mia_loss_auc", "mia_zlib_auc", "mia_mink_auc", "mia_minkpp_auc", "mia_reference_auc"}


def test_copying_and_plausibility_are_those_of_plain_transformers(
    audits: Callable[[int], list[dict[str, Any]]], folder: Path, llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:  # fmt: skip
    """Each document by itself, in one process."""
    measured = {m["metric"]: m for m in audits(1) if m["population"] == "control" and not m["group"]}
    run = folder / "1"
    corpus = Corpus(run / "corpus", run / "tokens" / "epoch-000")
    spans, model = corpus.spans(), plain.load(llama_folder)
    copies = CopyingRows(corpus, tiny_tokenizer, spans, tiny.ROW_LENGTH, most=200, seed=0)
    copied = [
        _of_tokens(model, copies, *place) for place in copies.spans[["row", "first", "end"]].itertuples(index=False)
    ]
    assert len(copied) >= 10
    assert measured["copied_appended_probability"]["value"] == pytest.approx(
        np.mean([np.exp(logprob.sum()) for logprob, _ in copied]), rel=1e-3
    )
    assert measured["copied_appended"]["value"] == np.mean([(rank == 0).all() for _, rank in copied])
    values = spans[(spans["split"] == "control") & ~spans["in_context"]]
    rows = PackedRows(run / "tokens" / "epoch-000" / "control.arrow")
    found = [_of_tokens(model, rows, *place) for place in values[["row", "first", "end"]].itertuples(index=False)]
    logprob, rank = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert measured["value_logprob"]["n"] == len(logprob)
    assert measured["value_logprob"]["value"] == pytest.approx(logprob.mean(), rel=1e-4)
    assert measured["value_rank"]["value"] == pytest.approx(np.exp(np.log(1 + rank).mean()), rel=1e-3)


def _of_tokens(model: PreTrainedModel, rows: Rows, row: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of tokens [first, end) of a row, and how many tokens are likelier, given their own document before them."""
    batch = rows.batch([row])
    start = int((batch.document[0] == batch.document[0, first]).nonzero()[0])
    ids = batch.input_ids[0, start:end]
    with torch.no_grad():
        logits = model(ids[None]).logits[0, first - start - 1 : -1]
    target = logits.gather(1, ids[first - start :, None])
    return (target[:, 0] - logits.logsumexp(1)).numpy(), (logits > target).sum(1).numpy()
