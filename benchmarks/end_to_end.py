"""A whole sanitisation of SmolLM2-135M on two ranks, by the clock: `sani-dist run` against `alternatives/trainer.py`.

Both load, measure, reset half of the neurons of the last layer, train two epochs on the same notes with identifiers out of the loss,
measure again and save a Hugging Face model, in bfloat16 under the same ZeRO-3 config. Both measure which spans greedy decoding
reproduces and the perplexity of notes and of held-out notes; ours also gives leak@n of every span, of which the alternative has
nothing, and counts spans apart whose value stands earlier in the document, which the alternative calls reproduced when they are copied.
Notes are of mixed length (`notes.py`); their identifiers are labelled, so that no detector is timed. Seconds are those of the
whole command, from its start to its end. The alternative's batches are those that were fast in `repair_step.py` and `audit.py`. What they
measure before must agree. After, it need not: other neurons are reset, and of as few steps as these `Trainer` takes the first, of the
warm-up, at a learning rate of 0. Time is what is compared.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import harness
import notes
import repair_step
import yaml

from sani_dist.api import measurements
from sani_dist.corpus import PackedRows
from sani_dist.engine.zero3 import DEFAULT_DS_CONFIG
from sani_dist.orchestrate.local import free_port
from sani_dist.run import Run

CASES = ("ours", "alternative")
RANKS, EPOCHS, DOCUMENTS, HELD_OUT = 2, 2, 24, 40
ALTERNATIVE = Path(__file__).parent / "alternatives" / "trainer.py"
CLAIMS = (harness.Claim("seconds", "alternative", "ours", at_least=2),)


def compare(folder: Path, repeats: int) -> None:
    model, rows = notes.prepare(folder, DOCUMENTS)
    corpus = folder / f"notes-{DOCUMENTS}" / "notes.jsonl"
    heldout = folder / "heldout.jsonl"
    notes.write_mixed_notes(heldout, HELD_OUT, seed=1)
    batch = math.ceil(DOCUMENTS * repair_step.BATCH_ROWS / len(PackedRows(rows)))
    recorder = harness.Recorder("end_to_end")
    for _ in range(repeats):
        for case, run in (("ours", ours), ("alternative", partial(alternative, batch=batch))):
            with tempfile.TemporaryDirectory(prefix="sani_dist-benchmark-") as out:
                start = time.perf_counter()
                found = run(model, corpus, heldout, Path(out))
                recorder.add(case, "seconds", time.perf_counter() - start)
                for name, value in found().items():
                    recorder.add(case, name, value)
    recorder.save(CLAIMS)


def ours(model: Path, corpus: Path, heldout: Path, out: Path) -> Any:
    settings = {
        "model": {"path": str(model)},
        "corpus": {
            "source": str(corpus), "heldout": str(heldout), "spans": "spans", "detect": [{"name": "annotations"}],
            "row_length": notes.ROW_LENGTH,
        },
        "erase": {"layers": 1, "fraction": 0.5},
        "repair": {"epochs": EPOCHS, "batch_rows": repair_step.BATCH_ROWS, "micro_rows": 2, "learning_rate": repair_step.LEARNING_RATE},
        "audit": {"metrics": ["extraction"]},
        "cluster": {"workers": RANKS},
    }  # fmt: skip
    (out / "run.yaml").write_text(yaml.safe_dump(settings))
    finished([Path(sys.executable).with_name("sani-dist"), "run", out / "run.yaml", "--out", out / "run"], out)

    def found() -> dict[str, float]:
        return {
            f"{m['metric']} {m['population']} {when}": m["value"]
            for when in ("before", "after")
            for m in measurements(Run.open(out / "run"), when)
            if not m["group"] and (m["metric"], m["population"]) in SHOWN and m["value"] is not None
        }

    return found


SHOWN = {("greedy", "sensitive"), ("perplexity", "repair"), ("perplexity", "heldout")}


def alternative(model: Path, corpus: Path, heldout: Path, out: Path, batch: int) -> Any:
    torchrun = Path(sys.executable).with_name("torchrun")
    launch = [torchrun, "--nproc-per-node", RANKS, "--master-port", free_port(), ALTERNATIVE]
    options = ["--ds-config", DEFAULT_DS_CONFIG, "--epochs", EPOCHS, "--batch", batch]
    printed = finished([*launch, model, corpus, heldout, out, *options], out)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"when"')]
    names = {"greedy": "greedy sensitive", "notes": "perplexity repair", "heldout": "perplexity heldout"}

    def found() -> dict[str, float]:
        return {f"{names[name]} {line['when']}": line[name] for line in lines for name in names}

    return found


def finished(command: list[Any], out: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=out, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    arguments = harness.options(__doc__, model=notes.DEFAULT_FOLDER, repeats=5).parse_args()
    compare(arguments.model, arguments.repeats)
