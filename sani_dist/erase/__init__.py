"""Which neurons and heads are reset (`select`), and resetting them (`apply`), or everything (`begin_again`), in place."""

from sani_dist.erase.apply import apply, begin_again
from sani_dist.erase.plan import Plan, Unit
from sani_dist.erase.select import select, share

__all__ = ["Plan", "Unit", "apply", "begin_again", "select", "share"]
