"""Fine-tuning that leaves sensitive tokens out of the loss."""

from sani_dist.repair.states import states_below
from sani_dist.repair.teacher import Predictions, predictions
from sani_dist.repair.train import Progress, places_of, train

__all__ = ["Predictions", "Progress", "places_of", "predictions", "states_below", "train"]
