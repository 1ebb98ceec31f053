"""Curves of a run for TensorBoard, in `logs/`: the training steps, and the audits before (step 0) and after (step 1).

Events are written by the rank itself, not by tensorboardX's thread: on a full disk the thread would die and the run would wait for it.
Numbers and names of measures only: no text of the corpus ever comes here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from sani_dist.audit.measurement import Measurement


class Curves:
    """Appends to an event file of its own, made with the first value: each start of a run has one, and TensorBoard joins them."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        """`enabled`: false on ranks other than 0."""
        self._folder, self._enabled = folder, enabled

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """`values`: {tag: value} at `step`. Raises OSError when it cannot be written."""
        if not self._enabled:
            return
        for tag, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def add_audit(self, when: str, measurements: Iterable[Measurement]) -> None:
        """What was measured over all spans or a whole split, as `audit/<metric>/<population>`. `when`: "before" or "after"."""
        values = {f"audit/{m.metric}/{m.population}": m.value for m in measurements if not m.group}
        known = {tag: value for tag, value in values.items() if value is not None and math.isfinite(value)}
        self.add(("before", "after").index(when), known)

    @cached_property
    def _writer(self) -> EventsWriter:
        return EventsWriter(str(self._folder / "events"))
