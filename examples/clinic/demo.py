"""The demo from beginning to end: a model memorises synthetic clinical notes, then it is sanitised.

What plays the hospital's part (writing notes, fine-tuning on them) happens here; what plays the user's part is an ordinary run.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from examples.clinic.english import write_general_text
from examples.clinic.model import write_base_model
from examples.clinic.notes import write_notes
from examples.clinic.settings import CONTROL, GENERAL, HELDOUT, NOTES, demo_config, memorise_config
from sani_dist import api
from sani_dist.config_file import config_from_mapping
from sani_dist.corpus.canaries import write_canaries
from sani_dist.engine.distributed import has_bfloat16
from sani_dist.errors import InputError
from sani_dist.purge import purge
from sani_dist.run import Run
from sani_dist.terminal import ProgressView

REPAIRED, CONTROLS, HELD_OUT = 48, 24, 24


def tell(folder: Path, seed: int, workers: int, console: Console, canaries: int = 0) -> Run:
    """Run the demo in a new folder; returns the finished run, `folder/run`. `canaries`: random codes put into as many notes.

    Raises InputError when the folder is not empty or a package that the demo needs is missing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: remove it, or choose another with --out")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    console.print(
        f"[bold]1. A hospital's data.[/bold] {REPAIRED} synthetic discharge notes; {CONTROLS} more that no training sees, as control."
    )
    write_notes(folder / NOTES, REPAIRED, seed)
    write_notes(folder / CONTROL, CONTROLS, seed, start=REPAIRED)
    write_notes(folder / HELDOUT, HELD_OUT, seed, start=REPAIRED + CONTROLS)
    if canaries:
        _put_in_canaries(folder, canaries, seed)
    write_general_text(folder / GENERAL)
    console.print("[bold]2. A base model.[/bold] SmolLM2-135M-Instruct, from its Python package.")
    write_base_model(folder / "base")
    dtype = "bfloat16" if has_bfloat16() else "float32"
    if dtype == "float32":
        console.print("It is trained in float32: this processor only emulates bfloat16.")
    console.print(
        "[bold]3. The hospital fine-tunes it on the notes,[/bold] identifiers included, until it knows them by heart."
    )
    with ProgressView(console) as view:
        memorised = api.sanitize(
            config_from_mapping(memorise_config(folder, seed, workers, dtype)),
            folder / "memorise",
            stages=api.REPAIR_STAGES,
            on_event=view,
        )
    memorised.path("model").rename(folder / "memorised")
    purge(memorised.folder)
    console.print("[bold]4. sani-dist sanitises the model.[/bold] It detects identifiers itself; labels only score it.")
    with ProgressView(console) as view:
        return api.sanitize(
            config_from_mapping(demo_config(folder, seed, workers, dtype)), folder / "run", on_event=view
        )


def _put_in_canaries(folder: Path, count: int, seed: int) -> None:
    notes, unused = folder / "notes-with-canaries.jsonl", folder / "unused-canaries.jsonl"
    write_canaries(str(folder / NOTES), notes, unused, count=count, seed=seed)
    notes.replace(folder / NOTES)
    with (folder / CONTROL).open("a", encoding="utf-8") as control:
        control.write(unused.read_text(encoding="utf-8"))
    unused.unlink()
