"""Processes and memory: distributed set-up, ZeRO-3, shards, weights in and out, checkpoints."""

import os

import torch

from sani_dist.engine.devices import present

# DeepSpeed reads this when it is imported, and warns at length where it has to find out by itself that there is no GPU.
if not torch.cuda.is_available() and not present():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
