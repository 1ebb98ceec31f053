"""What a run would need before anyone pays for it: memory of each GPU and time of a step, from arithmetic; no weights are loaded."""

import sani_dist.engine  # noqa: F401 - before DeepSpeed, which it tells that there is no GPU
from sani_dist.capacity.estimate import Estimate, Job, estimate
from sani_dist.capacity.hardware import GPUS, Gpu
from sani_dist.capacity.model import ModelShape, read_shape, shape_of
from sani_dist.capacity.tables import show, supplied

__all__ = ["GPUS", "Estimate", "Gpu", "Job", "ModelShape", "estimate", "read_shape", "shape_of", "show", "supplied"]
