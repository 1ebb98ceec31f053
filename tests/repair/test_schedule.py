"""Data order and learning rate: functions of the step alone."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sani_dist.config import RepairSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.repair.schedule import Schedule


def schedule(rows: int | list[int], general: int | None = None, **changes: Any) -> Schedule:
    """`rows`: of every epoch, or of each. `Schedule` reads nothing of the rows but their number."""
    made = RepairSettings.model_validate(changes)
    sizes = rows if isinstance(rows, list) else [rows] * math.ceil(made.epochs)
    texts = [cast(PackedRows, range(size)) for size in sizes]
    return Schedule(made, texts, None if general is None else cast(PackedRows, range(general)))


def taken(made: Schedule, first: int = 0) -> tuple[list[int], list[int]]:
    own, retained = [], []
    for step in range(first, made.steps):
        mine, general = made.batch(step)
        own += [row for _, row in mine]
        retained += general
    return own, retained


@given(rows=st.integers(1, 60), epochs=st.integers(1, 4), batch_rows=st.integers(1, 17), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=150, deadline=None)
def test_every_row_once_an_epoch(rows: int, epochs: int, batch_rows: int, seed: int) -> None:
    made = schedule(rows, epochs=epochs, batch_rows=batch_rows, seed=seed)
    own, retained = taken(made)
    assert retained == []
    assert len(own) == epochs * rows
    for epoch in range(epochs):
        assert sorted(own[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert made.steps == math.ceil(epochs * rows / batch_rows)
    assert all(len(made.batch(step)[0]) == batch_rows for step in range(made.steps - 1))


@given(rows=st.integers(1, 40), epochs=st.floats(0.01, 3), batch_rows=st.integers(1, 9))
@example(rows=25, epochs=0.04, batch_rows=1)
@example(rows=25, epochs=1.04, batch_rows=1)
@settings(max_examples=100, deadline=None)
def test_a_part_of_an_epoch(rows: int, epochs: float, batch_rows: int) -> None:
    own, _ = taken(schedule(rows, epochs=epochs, batch_rows=batch_rows))
    assert len(own) == math.ceil(Fraction(str(epochs)) * rows)
    assert max(Counter(own).values()) - min(Counter(own).get(row, 0) for row in range(rows)) <= 1


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), part=st.floats(0.05, 1), batch_rows=st.integers(1, 17)
)
@settings(max_examples=100, deadline=None)
def test_epochs_of_different_texts(sizes: list[int], part: float, batch_rows: int) -> None:
    """Each epoch takes the rows of its own text, however many they are, and a batch may lie in two or more."""
    made = schedule(sizes, epochs=len(sizes) - 1 + part, batch_rows=batch_rows)
    own = [place for step in range(made.steps) for place in made.batch(step)[0]]
    for epoch, size in enumerate(sizes[:-1]):
        assert sorted(row for e, row in own if e == epoch) == list(range(size))
    last = [row for e, row in own if e == len(sizes) - 1]
    assert len(set(last)) == len(last) == pytest.approx(part * sizes[-1], abs=1)
    assert [e for e, _ in own] == sorted(e for e, _ in own)
    assert all(len(made.batch(step)[0]) == batch_rows for step in range(made.steps - 1))


def test_epochs_have_different_orders() -> None:
    own, _ = taken(schedule(50, epochs=2, batch_rows=5, seed=1))
    assert own[:50] != own[50:]
    assert own[:50] != taken(schedule(50, epochs=1, batch_rows=5, seed=2))[0]
    assert own[:50] == taken(schedule(50, epochs=1, batch_rows=7, seed=1))[0]  # whatever the batch


@given(retain=st.floats(0, 0.95), batch_rows=st.integers(1, 40), general=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_the_share_of_general_text(retain: float, batch_rows: int, general: int) -> None:
    made = schedule(37, general, epochs=2, batch_rows=batch_rows, retain=retain)
    own, retained = taken(made)
    assert Counter(own) == Counter([*range(37), *range(37)])
    assert abs(made.retain_rows - batch_rows * retain) <= 1
    assert len(retained) == made.steps * made.retain_rows
    if retained:
        counts = Counter(retained)
        assert max(counts.values()) - min(counts.get(row, 0) for row in range(general)) <= 1
    assert made.own_rows + made.retain_rows == batch_rows  # more would not fit into the accumulation steps


def test_without_general_text_nothing_is_retained() -> None:
    assert schedule(10, None, retain=0.5, batch_rows=4).retain_rows == 0
    assert schedule(10, 0, retain=0.5, batch_rows=4).own_rows == 4


@given(step=st.integers(0, 18))
@settings(max_examples=20, deadline=None)
def test_a_resumed_run_goes_on_with_the_same_order(step: int) -> None:
    changes = {"epochs": 4, "batch_rows": 7, "retain": 0.3, "seed": 9}
    whole, resumed = schedule(23, 11, **changes), schedule(23, 11, **changes)
    batches = [whole.batch(i) for i in range(whole.steps)]
    assert [resumed.batch(i) for i in range(step, whole.steps)] == batches[step:]
    assert len(batches) == 19


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", [1 / 3, 2 / 3, *[1] * 8]),
        ("cosine", [1 / 3, 2 / 3, *[0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]]),
    ],
)
def test_learning_rate(kind: str, expected: list[float]) -> None:
    made = schedule(20, epochs=1, batch_rows=2, warmup=0.2, schedule=kind, learning_rate=0.5)
    assert made.steps == 10
    assert [made.learning_rate(step) / 0.5 for step in range(10)] == pytest.approx(expected)
