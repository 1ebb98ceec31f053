"""Masked cross-entropy: one function for training, one forward-only for the auditors.

Both take `rows`, the indices of the hidden states that count. Nothing else is read: a masked hidden state, even NaN, changes
neither loss nor gradient. This package imports nothing of ours.
"""

from sani_dist.kernels.masked_ce import masked_cross_entropy, token_scores
from sani_dist.kernels.problem import Scores, Teacher

__all__ = ["Scores", "Teacher", "masked_cross_entropy", "token_scores"]
