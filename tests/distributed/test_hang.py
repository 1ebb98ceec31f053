"""A rank that does not come to a collective is named, in one line, and its stack is in its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sani_dist
from sani_dist.config import Config
from sani_dist.errors import RunError
from sani_dist.files import file_sha256
from sani_dist.orchestrate import watchdog
from sani_dist.orchestrate.local import environment, free_port
from sani_dist.run import Run

from ..watching import ranks_of, wait_until
from .test_runs import at_step

SECONDS = 20  # enough for two ranks to start beside those of another test


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
def test_a_stopped_rank_is_named_and_leaves_its_stack(
    make_config: Callable[..., Config], finished_run: Run, tmp_path: Path, stopped: int
) -> None:
    folder = tmp_path / "run"
    config = make_config(cluster={"workers": 2, "threads": 1, "timeout_seconds": SECONDS})

    def stop() -> None:
        os.kill(ranks_of(folder)[stopped].pid, signal.SIGSTOP)

    with pytest.raises(RunError) as failed:
        sani_dist.sanitize(config, folder, on_event=at_step(6, stop))
    log = folder / "logs" / f"rank-{stopped}.log"
    line = str(failed.value)
    assert line.startswith(f"rank {stopped} on {os.uname().nodename} did not come to a collective within {SECONDS} s")
    assert f"its stack is in {log}; `sani-dist resume {folder}`" in line
    assert "\n" not in line
    text = log.read_text()
    stack = text[text.index("(most recent call first)") :]
    assert "sani_dist/repair/train.py" in stack[: stack.index("Traceback")]
    assert ranks_of(folder) == []
    if stopped == 0:
        run = sani_dist.resume(folder)
        assert run.pending() == []
        same = [file_sha256(r.path("model", "model.safetensors")) for r in (run, finished_run)]
        assert same[0] == same[1]


# Without ranks

LATE = RuntimeError("gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete")
CLOSED = RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:29500")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchdog, "SETTLE_SECONDS", 0.3)
    (tmp_path / "logs").mkdir()
    for rank in range(2):
        known = {"host": f"node-{rank}", "pid": os.getpid(), "created": 0.0}
        (tmp_path / "logs" / f"rank-{rank}.process").write_text(json.dumps(known))
    return tmp_path


def test_other_errors_are_left_alone(folder: Path) -> None:
    assert watchdog.explain(folder, 0, 2, 4, ValueError("a shape")) is None
    assert not watchdog.error_file(folder, 0).exists()


def test_a_peer_that_is_gone_is_not_said_to_hang(folder: Path) -> None:
    """A rank that was killed is told by who started it."""
    assert watchdog.explain(folder, 0, 2, 4, CLOSED) is None


def test_when_all_wait_it_is_the_network(folder: Path) -> None:
    watchdog.error_file(folder, 1).write_text(watchdog.MARK)
    line = watchdog.explain(folder, 0, 2, 4, LATE)
    assert line is not None
    assert line.startswith(
        "all ranks waited 4 s (cluster.timeout_seconds) in a collective: is the network between node-0 and node-1 up?"
    )
    # The other repeats it.
    assert watchdog.explain(folder, 1, 2, 4, CLOSED) == line


def test_a_rank_of_another_host_is_named_with_it(folder: Path) -> None:
    line = watchdog.explain(folder, 0, 2, 4, LATE)
    assert line is not None
    assert line.startswith("rank 1 on node-1 did not come to a collective within 4 s")


def test_a_stopped_process_writes_the_stack_of_its_main_thread(tmp_path: Path) -> None:
    """And goes on. Which of its threads is the first to wake is chance, so several times."""
    (tmp_path / "logs").mkdir()
    script = f"""
import pathlib, threading, time
from sani_dist.orchestrate import watchdog

def collective():
    time.sleep(0.001)

for _ in range(4):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
watchdog.answer(pathlib.Path({str(tmp_path)!r}), 1)
while True:
    collective()
"""
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen([sys.executable, "-c", script], stderr=file) as process:
        try:
            wait_until(lambda: watchdog._known(tmp_path, 1) is not None, process, log, seconds=10)
            for asked in range(1, 6):
                process.send_signal(signal.SIGSTOP)
                assert watchdog._ask_for_stack(tmp_path, 1)
                wait_until(lambda asked=asked: log.read_text().count("in <module>") == asked, process, log, seconds=10)
            assert process.poll() is None
        finally:
            process.kill()


def test_a_rank_that_was_not_started_is_one_line() -> None:
    script = """
from sani_dist.engine import distributed
from sani_dist.errors import RunError
try:
    distributed.start(threads=1, timeout_seconds=2)
except RunError as error:
    print(error)
"""
    port = free_port()
    variables = {**environment(0, 2, port), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert f"the 2 ranks did not come together at 127.0.0.1:{port} within 2 s" in done.stdout, done.stderr
