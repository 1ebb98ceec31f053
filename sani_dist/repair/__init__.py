"""Fine-tuning that leaves sensitive tokens out of the loss."""

from sani_dist.repair.states import states_below
from sani_dist.repair.train import Progress, places_of, train

__all__ = ["Progress", "places_of", "states_below", "train"]
