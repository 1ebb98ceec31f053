"""Loss of each document, against a sum by hand."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from sani_dist.audit.losses import document_losses
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE, Batch, PackedRows


def test_sums_learnable_tokens_of_each_document_and_leaves_sensitive_ones_and_the_control_out() -> None:
    """Two rows of five tokens; document 7 goes on in the second row."""
    role = torch.tensor([[IGNORE, LEARN, SENSITIVE, LEARN, LEARN], [LEARN, LEARN, SENSITIVE, IGNORE, IGNORE]])
    document = torch.tensor([[4, 4, 4, 7, 7], [7, 7, 7, -1, -1]])
    rows = MagicMock(PackedRows)
    rows.__len__.return_value = 2
    rows.batch.return_value = Batch(role, role, document, role)
    logprob = np.array([[np.nan, -1, -50, np.nan, -2], [-3, -0.5, -50, np.nan, np.nan]], dtype=np.float32)
    scores = TokenScores(logprob, np.zeros((2, 5), dtype=bool))
    table = document_losses({"heldout": scores, "control": scores}, {"heldout": rows, "control": rows})
    assert table.to_dict("list") == {
        "split": ["heldout", "heldout"],
        "document": [4, 7],
        "loss": [pytest.approx(1.0), pytest.approx(5.5)],
        "tokens": [1, 3],
    }
