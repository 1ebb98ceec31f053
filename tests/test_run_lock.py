"""One command at a time in a run folder; what it writes is for its owner alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sani_dist
from sani_dist.config import Config
from sani_dist.errors import InputError
from sani_dist.lock import alone
from sani_dist.run import Run, make_folder

HOLD = """
import subprocess, sys, time
from pathlib import Path
from sani_dist.lock import alone
with alone(Path(sys.argv[1])) as lock:
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    rank = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=(lock,))
    time.sleep(600)
"""


def test_a_second_start_or_resume_is_refused(make_config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_folder(folder)
    with alone(folder):
        with pytest.raises(InputError, match=r"is in use by another command \(process \d+\): wait"):
            sani_dist.api.prepare(make_config(), folder)
        Run.create(folder, make_config())
        for work in (sani_dist.resume, sani_dist.api.attack, sani_dist.api.report):
            with pytest.raises(InputError, match="is in use by another command"):
                work(folder)


def test_a_command_that_was_killed_holds_nothing_once_its_ranks_have_ended(tmp_path: Path) -> None:
    """Its rank ends with its standard input, as ours do."""
    command = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert command.stdout is not None
        assert command.stdout.readline() == b"1\n"
        with pytest.raises(InputError, match=f"process {command.pid}"), alone(tmp_path):
            pytest.fail("it is held")
    finally:
        command.kill()
    with alone(tmp_path) as lock:
        assert lock is not None
    command.wait()


def test_a_start_that_was_cut_short_can_be_made_again(make_config: Callable[..., Config], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", make_config())
    key = run.key
    run.path("config.yaml").rename(run.path(".tmp-config.yaml"))
    again = Run.create(tmp_path / "run", make_config())
    assert again.config == run.config
    assert again.key != key
    with pytest.raises(InputError, match="is not empty"):
        Run.create(tmp_path / "run", make_config())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(make_config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(InputError, match="belongs to another user"):
        sani_dist.api.prepare(make_config(), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("given", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_line(
    make_config: Callable[..., Config], tmp_path: Path, given: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        sani_dist.api.prepare(make_config(), tmp_path / given)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_all_that_is_prepared_is_for_its_owner_alone(
    make_config: Callable[..., Config], tmp_path: Path, umask: int
) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    before = os.umask(umask)
    try:
        run = sani_dist.api.prepare(make_config(), tmp_path / "run")
    finally:
        assert os.umask(before) == umask, "the caller's own is as it was"
    for path in (run.folder, *run.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
