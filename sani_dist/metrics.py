"""metrics.jsonl: what a run reports while it goes, one JSON object a line, written by rank 0 and followed by whoever shows progress."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A bar that moves five times a second looks alive; more lines only make the file longer.
SECONDS_BETWEEN = 0.2


class Metrics:
    """Appends events. Numbers and names of stages only: no text of the corpus ever comes here."""

    def __init__(
        self, path: Path, enabled: bool = True, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """`enabled`: false on ranks other than 0. `on_event`: also called with each event, by a process that shows its own progress."""
        self.path, self.enabled, self._on_event = path, enabled, on_event
        self._last = 0.0

    def progress(self, stage: str, done: int, total: int, unit: str, **numbers: float) -> None:
        """`done` of `total` units; throttled, but the last one is always written."""
        now = time.monotonic()
        if done < total and now - self._last < SECONDS_BETWEEN:
            return
        self._last = now
        self.write(stage=stage, done=done, total=total, unit=unit, **numbers)

    def write(self, **event: Any) -> None:
        if not self.enabled:
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        if self._on_event is not None:
            self._on_event(event)


def read_stage(path: Path, stage: str) -> list[dict[str, Any]]:
    """The events of a stage until now; none where there is no file. A line that is being written, or damaged, is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(event, dict) and event.get("stage") == stage:
                events.append(event)
    return events
