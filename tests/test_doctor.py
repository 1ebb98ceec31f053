"""What the machine has, against what a run needs."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from sani_dist import doctor
from sani_dist.config import Config

from .watching import COMMAND


def sani_dist(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it: without what the tests tell DeepSpeed."""
    variables = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [*COMMAND, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def examined(config: Config | None, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, dict[str, str]]:
    """Whether all is good, and the lines by what they are about; no rank is started."""
    monkeypatch.setattr(doctor, "_two_ranks_talk", lambda: ("yes", True))
    stream = io.StringIO()
    good = doctor.examine(Console(file=stream, width=200), config)
    lines = [line.split(maxsplit=1) for line in stream.getvalue().splitlines()]
    return good, {rest[: doctor.NAME_WIDTH].strip(): f"{mark} {rest[doctor.NAME_WIDTH :]}" for mark, rest in lines}


def test_this_machine_can_run_what_the_tests_run(settings_file: Path) -> None:
    """The whole command, with two ranks that talk."""
    done = sani_dist("doctor", str(settings_file))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["ok", "two", "ranks", "can", "talk", "yes"] in lines
    assert {"torch", "deepspeed", "transformers", "free"} <= {words[1] for words in lines if words[0] == "ok"}
    assert not any(words[0] == "bad" for words in lines)
    assert "Setting accelerator" not in done.stdout + done.stderr


def test_settings_that_cannot_work_are_one_line(settings_file: Path) -> None:
    mapping = yaml.safe_load(settings_file.read_text())
    mapping["erase"]["layers"] = 99
    settings_file.write_text(yaml.safe_dump(mapping))
    done = sani_dist("doctor", str(settings_file))
    assert done.returncode == 2
    assert done.stderr == "error: erase.layers: 99, but the model has 3 layers\n"


@pytest.mark.parametrize("free", [10**4, 10**12])
def test_memory_and_disk_are_compared_with_what_the_run_needs(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    good, lines = examined(make_config(), monkeypatch)
    enough = free == 10**12
    assert good is enough
    assert all(lines[name].startswith("ok" if enough else "bad") for name in ("free memory", "free disk"))
    assert examined(None, monkeypatch)[0]  # without settings there is nothing to compare with


def test_a_missing_compiler_or_package_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    good, lines = examined(None, monkeypatch)
    assert not good
    assert lines["C++ compiler"].startswith("bad none")
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    good, lines = examined(None, monkeypatch)
    assert not good
    assert lines["no-such-package"] == "bad not installed"


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ({"avx512_f": True, "amx_bf16": True}, "ok computed in hardware"),
        ({"neon": True, "bf16": True}, "ok computed in hardware"),
        ({"avx512_f": True}, "- only emulated: with `model.dtype: float32` ranks are much faster here"),
    ],
)
def test_bfloat16_that_is_emulated_is_told(monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], said: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    good, lines = examined(None, monkeypatch)
    assert good
    assert lines["bfloat16"] == said


def test_presidio_is_needed_by_some_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> str:
        if package == "presidio-analyzer":
            raise doctor.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor, "version", without)
    good, lines = examined(None, monkeypatch)
    assert good
    assert lines["presidio-analyzer"] == "- not installed: pip install 'sani_dist[presidio]'"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        # Much more than a pipe holds, then the reason.
        ("import sys; sys.stderr.write('x' * 10**6 + chr(10)); sys.exit('no route to host')", "no: no route to host"),
        # One rank fails, the other would wait for it for ever.
        ("import os, time; time.sleep(600 * int(os.environ['RANK'])); os.abort()", "no: a rank failed"),
        ("import time; time.sleep(600)", "no answer in 2 s: check firewall and /etc/hosts"),
    ],
)
def test_ranks_that_cannot_talk_are_a_finding_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "_TALK", script)
    monkeypatch.setattr(doctor, "TALK_SECONDS", 2)
    assert doctor._two_ranks_talk() == (said, False)
