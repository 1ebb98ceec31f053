"""Standard input as a line to whoever started this process: the pipe ends when they do, even if they are killed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def follow_stdin(on_end: Callable[[], object], on_input: Callable[[], object] = lambda: None) -> None:
    """From a thread, call `on_input` whenever something comes, and `on_end` when standard input closes."""

    def follow() -> None:
        # Not through sys.stdin: an interpreter that ends while a thread waits in it aborts.
        while os.read(sys.stdin.fileno(), 1024):
            on_input()
        on_end()

    threading.Thread(target=follow, name="follow-stdin", daemon=True).start()
