"""In bfloat16 the gradients of many micro-batches are added up in fp32, and their scale is rounded nowhere."""

from __future__ import annotations

import json
from pathlib import Path

from .ranks import ROOT, run_ranks


def test_a_sum_over_micro_batches_is_that_of_float64(
    llama_folder: Path, threshold_0: Path, tokens: Path, tmp_path: Path
) -> None:
    repair = {"epochs": 20, "micro_rows": 1, "retain": 0, "clip": 1e9, "learning_rate": 1e-3}
    # A sixty-fourth has no rounding error in bfloat16; a sixty-third, .1 %.
    steps = [64, 63]
    run_ranks(
        1, "accumulation_work.accumulated", tmp_path,
        model=str(llama_folder), ds_config=str(threshold_0), tokens=str(tokens), repair=repair, steps=steps,
    )  # fmt: skip
    found = json.loads((tmp_path / "errors.json").read_text())
    for count in map(str, steps):
        error, too_long = found["ours"][count]
        assert error < 1e-4
        assert abs(too_long) < 1e-5
        assert found["bf16"][count][0] > 1e-3, "DeepSpeed's default is not good enough, or this shows nothing"


def test_every_supplied_file_says_so() -> None:
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        assert json.loads(path.read_text())["data_types"] == {"grad_accum_dtype": "fp32"}, path.name
