"""`purge` removes what a run left wherever it lies, or names what it could not, and never a file that the run did not write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sani_dist.config import Config
from sani_dist.errors import InputError, RunError
from sani_dist.lock import alone
from sani_dist.purge import purge
from sani_dist.run import Run

from .test_privacy import leaks

SECRET = "Zebulon Quackenbush"
CONTENT = (
    "key", "corpus/documents.parquet", "tokens/epoch-000/repair.arrow", "tokens/related.arrow",
    "repair/checkpoints/step-000004/rank-00000.safetensors", "repair/checkpoints/step-000004/state.json",
    "repair/trunk/rank-00000.bin", "repair/.tmp-teacher/rank-00000.bin", "logs/ray/notes",
    ".tmp-config.yaml", "corpus/.tmp-documents.parquet", "tokens/epoch-000/.tmp-heldout.arrow", ".tmp-model/model.safetensors",
)  # fmt: skip


@pytest.fixture
def run(make_config: Callable[..., Config], tmp_path: Path) -> Run:
    """With a secret in each place that may hold one."""
    run = Run.create(
        tmp_path / "run",
        make_config(
            corpus={
                "detect": [
                    {"name": "presidio", "patterns": [{"kind": "A", "regex": f"({SECRET})"}]},
                    {"name": "terms", "values": [SECRET]},
                ],
                "target": {"values": [SECRET], "subjects": [SECRET]},
            },
            audit={"generation": {"prompts": [SECRET]}},
            cluster={"runtime_env": {"env_vars": {"WANDB_API_KEY": SECRET}}},
        ),
    )
    for name in CONTENT:
        run.path(name).parent.mkdir(parents=True, exist_ok=True)
        run.path(name).write_text(SECRET)
    return run


def held(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_nothing_with_a_secret_is_left(run: Run) -> None:
    purge(run.folder)
    assert leaks(run.folder, [SECRET]) == set()
    assert held(run.folder) == {"config.yaml", "run.json", "lock"}
    assert Run.open(run.folder).config.repair == run.config.repair
    assert purge(run.folder) == []


def linked(run: Run, name: str, elsewhere: Path) -> Path:
    """Move a folder of the run to another disk and leave a link."""
    run.path(name).rename(elsewhere)
    run.path(name).symlink_to(elsewhere)
    return elsewhere


@pytest.mark.parametrize(
    "name", ["tokens", "tokens/epoch-000", "repair/checkpoints", "repair", "repair/trunk", "corpus"]
)
def test_what_lies_on_another_disk_goes_as_well(run: Run, tmp_path: Path, name: str) -> None:
    elsewhere = linked(run, name, tmp_path / "disk")
    purge(run.folder)
    assert leaks(tmp_path, [SECRET]) == set()
    assert not elsewhere.exists() or held(elsewhere) == set()


def test_a_file_of_the_user_behind_a_link_stays_and_is_named(run: Run, tmp_path: Path) -> None:
    own = linked(run, "tokens", tmp_path / "disk") / "thesis.txt"
    own.write_text("mine")
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    run.path("key").unlink()
    run.path("key").symlink_to(letter)
    with pytest.raises(RunError, match=r"not removed: tokens/thesis.txt, key .*by hand") as left:
        purge(run.folder)
    assert "\n" not in str(left.value)
    assert own.read_text() == letter.read_text() == "mine"
    assert leaks(tmp_path, [SECRET]) == set(), "and everything else is gone"


def test_a_file_that_a_stage_recorded_goes_wherever_it_lies(run: Run, tmp_path: Path) -> None:
    documents = run.path("corpus", "documents.parquet")
    run.mark_done("prepare", [documents])
    documents.rename(tmp_path / "text.parquet")
    documents.symlink_to(tmp_path / "text.parquet")
    purge(run.folder)
    assert leaks(tmp_path, [SECRET]) == set()


@pytest.mark.parametrize("settings", ["{", "corpus: 3", f"corpus: {{nobody: {SECRET}}}", "\0", "a: &a [*a, *a]"])
def test_damaged_settings_go_as_a_whole(run: Run, settings: str) -> None:
    run.path("config.yaml").write_text(settings)
    assert "config.yaml, which cannot be read" in purge(run.folder)
    assert held(run.folder) == {"run.json", "lock"}
    assert purge(run.folder) == []


def test_refuses_what_is_no_run_and_a_run_at_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        purge(tmp_path)
    with alone(run.folder), pytest.raises(InputError, match=r"is in use by another command \(process \d+\)"):
        purge(run.folder)
    assert set(CONTENT) <= held(run.folder)
