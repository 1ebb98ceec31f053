"""Curves of a run for those who watch it: `tensorboard --logdir RUN/logs`.

They get the training steps, and the audits before (step 0) and after (step 1). Numbers and names of measures only: no text of the corpus,
no console output, no code and no command line ever go there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from sani_dist.audit.measurement import Measurement


class Curves:
    """An event file of its own for each start of a run, made with the first values; TensorBoard joins them.

    Events are written here, not by tensorboardX's thread: on a full disk the thread would die and the run would wait for it.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        """`folder`: where the event files go. `enabled`: false on ranks other than 0."""
        self._folder, self._enabled = folder, enabled
        self._writer: EventsWriter | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """`values`: {tag: value} at `step`. Raises OSError when the file cannot be written."""
        if not self._enabled:
            return
        if self._writer is None:
            self._writer = EventsWriter(str(self._folder / "events"))
        for tag, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def add_audit(self, when: str, measurements: Iterable[Measurement]) -> None:
        """What was measured over all spans or a whole split, as `audit/<metric>/<population>`. `when`: "before" or "after"."""
        values = {f"audit/{m.metric}/{m.population}": m.value for m in measurements if not m.group}
        known = {tag: value for tag, value in values.items() if value is not None and math.isfinite(value)}
        self.add(("before", "after").index(when), known)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
