"""Which kinds of span the never-trained control can speak for.

A value that training saw is no control. Of a kind with few values, such as the towns around a hospital, none may be left: then nobody
knows what guessing reaches there, and by their scores members would be told from the control for no more than their kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

# Share of the control's spans that are of a kind, against that of the sensitive ones.
LEAST = 0.1


def without_control(sensitive: Mapping[str, int], control: Mapping[str, int]) -> list[str]:
    """Kinds that are less than `LEAST` times as frequent in the control as among the sensitive spans, those with most spans first.

    Both: number of spans by kind.
    """
    of_sensitive, of_control = sum(sensitive.values()), sum(control.values())
    found = [kind for kind, n in sensitive.items() if control.get(kind, 0) * of_sensitive < LEAST * n * of_control]
    return sorted(found, key=lambda kind: (-sensitive[kind], kind))


def comparable(sensitive: pd.DataFrame, control: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The spans of kinds that have a control. Both: with a column `kind`."""
    counts = ({str(kind): int(n) for kind, n in table["kind"].value_counts().items()} for table in (sensitive, control))
    without = without_control(*counts)
    return sensitive[~sensitive["kind"].isin(without)], control[~control["kind"].isin(without)]
