"""Preparation of a corpus, the stage before any rank starts: finding what is sensitive, closing over the text, tokenising, packing.

The text is clinical notes of the demo, every one with identities of its own; detectors are `annotations` (the notes are labelled) and
`terms`. (With Presidio, its language model is what would be measured.) Sizes are those of the JSONL file, half of it text, half labels.
Each measurement is a fresh process. Time is that of preparation alone, after a small one that loads everything; memory is the highest
resident memory of the process, imports included. `4 x` has four times the file of `1 x`.

`--megabytes` measures one file of that size instead. `--ray` measures `4 x` by two actors of Ray Data: their processes are started three
times in it, on the two cores that the writing process needs too. Memory is that of this process, and the files must be those of `4 x`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import notes

from sani_dist.config import CorpusSettings

MEGABYTES, ACTORS = 4, 2
# Of the preparation that is not measured.
SMALL_DOCUMENTS = 72
SMALL, LARGE, RAY = "1 x", "4 x", "4 x, Ray"
METRICS = ("seconds", "peak_rss_bytes", "megabytes_per_second")
TERMS = ("diabetes", "ketone strips", "blood pressure", "insulin")
CLAIMS = (
    harness.Claim("seconds", LARGE, SMALL, at_most=4.4),
    harness.Claim("seconds", LARGE, SMALL, at_least=3.6),
    harness.Claim("peak_rss_bytes", LARGE, SMALL, at_most=1.1),
)


def compare(folder: Path, repeats: int, megabytes: float | None, ray: bool) -> None:
    notes.prepare(folder, SMALL_DOCUMENTS)  # for the tokenizer, and the small preparation
    sizes = {SMALL: float(MEGABYTES), LARGE: 4.0 * MEGABYTES}
    if megabytes is not None:
        sizes = {f"{megabytes:g} MB": megabytes}
    if ray:
        sizes = {RAY: 4.0 * MEGABYTES}
    recorder = harness.Recorder("prepare")
    digests = {(size, run(folder, size)["sha256"]) for size in sizes.values()} if ray else set()
    for _ in range(repeats):
        for case, size in sizes.items():
            found = run(folder, size, *["--ray"] * ray)
            for metric in METRICS:
                recorder.add(case, metric, found[metric])
            digests.add((size, found["sha256"]))
    if len(digests) != len(sizes):
        raise SystemExit("the files differ between repeats, or between Ray and this process")
    recorder.save([claim for claim in CLAIMS if {claim.case, claim.against} <= sizes.keys()])


def run(folder: Path, megabytes: float, *options: str) -> dict[str, Any]:
    """What a fresh process measures on a file of that size."""
    path = folder / f"notes-{megabytes:g}-megabytes.jsonl"
    if not path.exists():
        notes.write_megabytes_of_notes(path.with_suffix(".part"), megabytes, seed=0)
        path.with_suffix(".part").rename(path)
    (found,) = harness.run_ranks(__file__, ["--model", str(folder), "--source", str(path), *options], ranks=1)
    return found


def measure(arguments: argparse.Namespace) -> None:
    """One fresh process."""
    from transformers import AutoTokenizer

    from sani_dist.corpus import prepare
    from sani_dist.corpus.executor import on_ray
    from sani_dist.orchestrate import PREPARE_STORE_BYTES
    from sani_dist.orchestrate.connection import connected

    tokenizer = AutoTokenizer.from_pretrained(arguments.model / "smollm2-135m")  # type: ignore[no-untyped-call]

    def prepare_file(source: Path, folder: Path) -> None:
        settings = CorpusSettings.model_validate(
            {
                "source": str(source), "spans": "spans", "row_length": notes.ROW_LENGTH,
                "detect": [{"name": "annotations"}, {"name": "terms", "values": TERMS}],
            }
        )  # fmt: skip
        executor = on_ray(ACTORS, {}) if arguments.ray else map
        prepare(settings, tokenizer, folder, key=b"benchmark", executor=executor)

    with tempfile.TemporaryDirectory(dir=arguments.model) as name, contextlib.ExitStack() as stack:
        if arguments.ray:
            stack.enter_context(connected(None, cpus=ACTORS, resources={}, object_store_bytes=PREPARE_STORE_BYTES))
        folder = Path(name)
        prepare_file(arguments.model / f"notes-{SMALL_DOCUMENTS}" / "notes.jsonl", folder / "small")
        start = time.perf_counter()
        prepare_file(arguments.source, folder / "measured")
        seconds = time.perf_counter() - start
        measured = {
            "seconds": seconds,
            "peak_rss_bytes": harness.highest_rss(),
            "megabytes_per_second": arguments.source.stat().st_size / 1e6 / seconds,
            "sha256": sha256_of(folder / "measured"),
        }
    harness.report(arguments.result, measured)


def sha256_of(folder: Path) -> str:
    """Hash of the names and contents of all files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


if __name__ == "__main__":
    parser = harness.options(__doc__, model=notes.DEFAULT_FOLDER, repeats=5)
    parser.add_argument("--megabytes", type=float, help="of one file that is measured instead")
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ray", action="store_true", help="two actors of Ray Data work on the text")
    given = parser.parse_args()
    if given.result:
        measure(given)
    else:
        compare(given.model, given.repeats, given.megabytes, given.ray)
