"""Many settings of erase and repair on one model and one text: what each leaves and costs, which of them none beats, and the one to take.

Each trial is a run of its own in the sweep's folder. Ray Tune places the trials, as many at once as there is room for.
"""

from __future__ import annotations

from sani_dist.sweep.settings import SweepSettings, load_sweep

__all__ = ["SweepSettings", "load_sweep"]
