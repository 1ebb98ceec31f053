"""How well a score tells members of the training data from non-members: area under the curve, and hits at 1 % false alarms.

A higher score always speaks for a member.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from sani_dist.audit.measurement import REACH, clopper_pearson

FALSE_ALARMS = 0.01
# With fewer, 1 % of them is less than one control, and no threshold can be set.
FEWEST_CONTROLS = 100
# With fewer on a side, the spread between documents is hardly known.
FEWEST_DOCUMENTS = 10


def auc(
    members: np.ndarray, controls: np.ndarray, member_documents: np.ndarray, control_documents: np.ndarray
) -> tuple[float, float]:
    """Area under the curve and its standard error, by DeLong et al. (Biometrics 44, 1988) with the terms of a document summed first.

    That is Obuchowski's estimate for clustered data (Biometrics 53, 1997), and DeLong's where each document has one score. Placements
    come from ranks (Sun & Xu, IEEE Signal Process. Lett. 21, 2014); ties count half.

    members, controls: scores [m], [n]; *_documents: the document of each. Members and controls share no document.
    """
    m, n = len(members), len(controls)
    together = _ranks(np.concatenate([members, controls]))
    below = (together[:m] - _ranks(members)) / n  # share of controls below each member
    above = 1 - (together[m:] - _ranks(controls)) / m  # share of members above each control
    area = float(below.mean())
    variance = _variance_of_mean(below, member_documents) + _variance_of_mean(above, control_documents)
    return area, math.sqrt(variance)


def auc_interval(area: float, error: float, documents: int) -> tuple[float, float]:
    """95 % interval on the logit scale, so that it stays between 0 and 1.

    documents: of the smaller side. Where all members lie above all controls, or below, the estimate of the error is 0. But pairs of a
    member and a control that share no document are independent trials, and `documents` of them all agreed: their Clopper-Pearson
    interval holds.
    """
    if area in (0.0, 1.0) or error == 0.0:
        return clopper_pearson(round(area * documents), documents)
    reach = REACH * error / (area * (1 - area))
    middle = float(logit(area))
    return float(expit(middle - reach)), float(expit(middle + reach))


def hits_at_false_alarms(members: np.ndarray, controls: np.ndarray) -> int:
    """How many members score above the lowest threshold that at most 1 % of the controls exceed."""
    allowed = math.floor(FALSE_ALARMS * len(controls))
    threshold = np.sort(controls)[len(controls) - allowed - 1]
    return int((members > threshold).sum())


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    return pd.Series(values).rank().to_numpy()


def _variance_of_mean(values: np.ndarray, documents: np.ndarray) -> float:
    _, place = np.unique(documents, return_inverse=True)
    sums = np.bincount(place, weights=values - values.mean())
    count = len(sums)
    return float(count / (count - 1) * (sums**2).sum() / len(values) ** 2)
