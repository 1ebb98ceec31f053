"""The bytes that DeepSpeed logs of a step, against the formula (docs/communication.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sani_dist.config import CorpusSettings
from sani_dist.corpus.prepare import prepare
from sani_dist.engine.communication import GATHER, REDUCE, step_bytes

from .ranks import run_ranks

# Two micro-batches on two ranks, one on three.
REPAIR = {"epochs": 1, "batch_rows": 6, "micro_rows": 2, "retain": 0.4, "warmup": 0}


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("communication")
    settings = CorpusSettings.model_validate(
        {"source": corpus["notes"], "general": corpus["general"], "spans": "spans", "detect": [{"name": "annotations"}],
         "row_length": 96}
    )  # fmt: skip
    prepare(settings, tiny_tokenizer, folder, b"k" * 32)
    return folder / "tokens" / "epoch-000"


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_step_communicates_what_the_formula_says(
    tokens: Path, llama_folder: Path, threshold_0: Path, tmp_path: Path, workers: int
) -> None:
    """All layers and the last one; with nothing that stays gathered, and with the default, where tiny models do as a whole."""
    cases = [
        {"name": "sharded", "ds_config": str(threshold_0), "last": None},
        {"name": "kept", "ds_config": None, "last": None},
        {"name": "last", "ds_config": str(threshold_0), "last": 1},
    ]
    run_ranks(
        workers, "bytes_of_a_step", tmp_path, cases=cases, model=str(llama_folder), tokens=str(tokens), repair=REPAIR
    )
    for case in cases:
        for rank in range(workers):
            found = json.loads((tmp_path / f"{case['name']}-{rank}.json").read_text())
            assert found["micro_batches"] == (2 if workers == 2 else 1)
            expected = step_bytes(
                found["gathered"], found["trained"],
                ranks=workers, micro_batches=found["micro_batches"], weight_bytes=2,
                persistent=10**5 if case["ds_config"] is None else 0,
            )  # fmt: skip
            for operation in (GATHER, REDUCE):
                assert found["logged"][operation] == pytest.approx(expected[operation], rel=0.05), (case, operation)
            rest = sum(size for operation, size in found["logged"].items() if operation not in expected)
            assert rest < 0.05 * sum(expected.values())
