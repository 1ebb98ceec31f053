"""Which neurons and heads are reset (`select`), and resetting them in place (`apply`)."""

from sani_dist.erase.apply import apply
from sani_dist.erase.plan import Plan, Unit
from sani_dist.erase.select import select, share

__all__ = ["Plan", "Unit", "apply", "select", "share"]
