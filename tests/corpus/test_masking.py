"""What is hidden of rows, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sani_dist.corpus.encode import Encoded
from sani_dist.corpus.masking import HiddenRows, Masking, every_token
from sani_dist.corpus.pack import pack, write_rows
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE, PackedRows, empty_batch, stacked, targets

MASK = 99
ROLES = np.array([IGNORE, *[LEARN] * 20, *[SENSITIVE] * 5, *[LEARN] * 20, IGNORE], np.uint8)


@pytest.fixture
def rows(tmp_path: Path) -> PackedRows:
    """Two documents of 47 tokens, 40 of which may be learnt, each in a row of its own."""
    pieces = [Encoded(d, np.arange(47, dtype=np.int32) + 100 * d, ROLES, ()) for d in (1, 2)]
    list(write_rows(tmp_path / "a.arrow", pack(pieces, 120, alone=True), 120, padding=7))
    found = PackedRows(tmp_path / "a.arrow")
    assert len(found) == 2
    return found


def test_training_hides_a_share_of_the_learnable_tokens_and_no_sensitive_one(rows: PackedRows) -> None:
    masking = Masking(MASK, 500, 3, (LEARN,))
    shown, hidden = [], np.zeros(47, int)
    for number in range(400):
        row = rows.batch([0])
        batch = masking.hide(row, number)
        index, target, role, _ = targets(batch)
        assert len(index) == masking.count(int(rows.learnable[0])) == 6
        assert (role == LEARN).all()
        assert torch.equal(target, row.input_ids[0, index])
        visible = torch.ones(120, dtype=torch.bool)
        visible[index] = False
        assert torch.equal(batch.input_ids[0, visible], row.input_ids[0, visible])
        hidden[index.numpy()] += 1
        shown += [(int(a), int(b)) for a, b in zip(batch.input_ids[0, index], target, strict=True)]
    assert (hidden[ROLES != LEARN] == 0).all()
    assert (hidden[ROLES == LEARN] > 25).all()  # 60 expected of each
    masked, kept = (np.mean([a == b for a, b in pairs]) for pairs in ([(a, MASK) for a, _ in shown], shown))
    # 2400 tokens: 80 % +- 0.8 % one standard error, 10 % +- 0.6 %.
    assert abs(masked - 0.8) < 0.04
    assert abs(kept - 0.1) < 0.03


def test_what_is_hidden_depends_on_seed_and_number_alone(rows: PackedRows) -> None:
    row = rows.batch([1])

    def ids(seed: int, number: int) -> list[int]:
        found: list[int] = Masking(MASK, 500, seed, (LEARN,)).hide(row, number).input_ids[0].tolist()
        return found

    assert ids(1, 5) == ids(1, 5)
    assert ids(1, 5) != ids(1, 6)
    assert ids(1, 5) != ids(2, 5)


def test_plain_training_hides_sensitive_tokens_too(rows: PackedRows) -> None:
    masking = Masking(MASK, 500, 3, (LEARN, SENSITIVE))
    found = {int(i) for number in range(50) for i in targets(masking.hide(rows.batch([0]), number), (SENSITIVE,))[0]}
    assert found == set(range(21, 26))


def test_every_token_is_asked_for_once(rows: PackedRows) -> None:
    asked = HiddenRows(rows, every_token(rows, LEARN, parts=7), MASK)
    assert len(asked) == 2 * 7
    batch = asked.batch(range(len(asked)))
    index, target, _, _ = targets(batch, roles=(LEARN, SENSITIVE))
    assert sorted(target.tolist()) == [d * 100 + i for d in (1, 2) for i in range(47) if ROLES[i] == LEARN]
    assert (batch.input_ids.flatten()[index] == MASK).all()
    assert (batch.input_ids != batch.label).sum() == len(index)
    whole = HiddenRows(rows, every_token(rows, SENSITIVE, parts=1), MASK)
    assert [len(columns) for _, columns in whole.hidden] == [5, 5]


def test_rows_with_and_without_labels_stand_together(rows: PackedRows) -> None:
    asked = HiddenRows(rows, [(1, np.array([22]))], MASK)
    batch = stacked([asked.batch([0]), empty_batch(2, 120)])
    index, target, role, _ = targets(batch, roles=(LEARN, SENSITIVE))
    assert (index.tolist(), target.tolist(), role.tolist()) == ([22], [222], [SENSITIVE])


def test_a_row_without_learnable_tokens_hides_nothing(rows: PackedRows) -> None:
    masking = Masking(MASK, 500, 3, (LEARN,))
    batch = masking.hide(empty_batch(1, 120), 0)
    assert len(targets(batch)[0]) == masking.count(0) == 0
