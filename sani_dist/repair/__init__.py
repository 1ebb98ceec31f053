"""Fine-tuning that leaves sensitive tokens out of the loss."""

from sani_dist.repair.train import Progress, train

__all__ = ["Progress", "train"]
