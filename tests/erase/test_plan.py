"""The plan as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sani_dist.erase import Plan, Unit
from sani_dist.erase.plan import Memory
from sani_dist.errors import InputError

units = st.builds(
    Unit, st.integers(0, 200), st.sampled_from(["mlp", "head"]), st.lists(st.integers(0, 10**6), max_size=5).map(tuple)
)
summaries = st.dictionaries(st.sampled_from(["layer", "median", "highest"]), st.floats(allow_nan=False))
memories = st.builds(
    Memory, st.sampled_from(["mlp", "head"]), st.none() | st.text(max_size=9), st.integers(0),
    st.lists(st.integers(0, 200), max_size=3).map(tuple), st.lists(st.floats(0, 1), max_size=3).map(tuple),
)  # fmt: skip
plans = st.builds(
    Plan, st.text(max_size=64), st.integers(0, 2**63 - 1), st.sampled_from(["random", "attribution"]),
    st.sampled_from(["init", "zero", "base"]), st.lists(units, max_size=3).map(tuple), st.lists(summaries, max_size=3).map(tuple),
    st.lists(memories, max_size=2).map(tuple),
)  # fmt: skip


@given(plan=plans)
@settings(max_examples=100, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.write(path)
    assert Plan.read(path) == plan


GOOD = {"schema": 1, "source_sha256": "", "seed": 0, "select": "random", "reset": "zero", "units": [], "scores": []}


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{", "3", "", json.dumps({**GOOD, "schema": 99}), json.dumps({**GOOD, "units": 3}), json.dumps({**GOOD, "more": 1}),
        json.dumps({key: value for key, value in GOOD.items() if key != "units"}),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plan(tmp_path: Path, document: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD))
    assert Plan.read(path).units == ()
    path.write_text(document)
    with pytest.raises(InputError, match="not an erase plan of schema 1"):
        Plan.read(path)
    with pytest.raises(InputError, match="not an erase plan"):
        Plan.read(tmp_path / "missing.json")
