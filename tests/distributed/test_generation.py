"""Real generation on 1, 2 and 3 ranks, against plain transformers without a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sani_dist import api
from sani_dist.run import Run

from . import plain
from .ranks import run_ranks

# Of unlike lengths, so that all but the longest are padded; more than fit into one batch of each rank.
PROMPTS = [[5, 17, 101, 9, 33], [250], [12, 12, 13, 40, 41, 42, 90, 300], [7, 8], [399, 1, 2]]
NEW_TOKENS = [6, 4, 5, 3, 6]


# Learned positions, as GPT-2 has them, depend on the padding; on more ranks nothing else differs.
CASES = {"llama": (1, 2, 3), "gpt2": (2,)}


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{name}_folder")
    return folder


@pytest.fixture(scope="module")
def texts(
    name: str, model: Path, threshold_0: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """(ranks, way) -> prompt number -> tokens [samples, new_tokens]."""
    found = {}
    for ranks in CASES[name]:
        folder = tmp_path_factory.mktemp("generated")
        run_ranks(
            ranks, "generated", folder, model=str(model), ds_config=str(threshold_0), prompts=PROMPTS, new_tokens=NEW_TOKENS,
        )  # fmt: skip
        for path in folder.glob("*.npz"):
            with np.load(path) as arrays:
                found[ranks, path.stem] = dict(arrays)
    return found


def test_greedy_texts_are_those_of_plain_transformers(
    model: Path, texts: dict[tuple[int, str], dict[str, np.ndarray]]
) -> None:
    alone = plain.load(model)
    for i, (prompt, count) in enumerate(zip(PROMPTS, NEW_TOKENS, strict=True)):
        ids = list(prompt)
        for _ in range(count):
            with torch.no_grad():
                ids.append(int(alone(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert texts[2, "greedy-sharded"][str(i)].tolist() == [ids[len(prompt) :]]


def test_texts_depend_neither_on_ranks_nor_on_where_the_weights_are(
    texts: dict[tuple[int, str], dict[str, np.ndarray]],
) -> None:
    for (ranks, way), found in texts.items():
        expected = texts[2, f"{way.split('-')[0]}-sharded"]
        assert found.keys() == expected.keys()
        for number, tokens in found.items():
            np.testing.assert_array_equal(tokens, expected[number], err_msg=f"{ranks} ranks, {way}, prompt {number}")


def test_samples_have_the_probabilities_of_the_likeliest_tokens(
    model: Path, texts: dict[tuple[int, str], dict[str, np.ndarray]]
) -> None:
    alone, tail = plain.load(model), []
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = alone(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        values, ids = logits.topk(5)
        first = texts[2, "sampled-whole"][str(i)][:, 0]
        assert set(first) <= set(ids.tolist())
        counts = [int((first == token).sum()) for token in ids.tolist()]
        expected = torch.softmax(values / 0.7, dim=0).numpy() * len(first)
        tail.append(chisquare(counts, expected).pvalue)
    assert min(tail) > 1e-3
    assert len({tuple(line) for line in texts[2, "sampled-whole"]["0"].tolist()}) > 10, "the samples are copies"


def test_a_run_measures_what_it_writes_beside_the_control(finished_run: Run) -> None:
    for when in ("before", "after"):
        found = api.measurements(finished_run, when)
        measured = {(m["metric"], m["population"]): m for m in found}
        for population in ("sensitive", "control"):
            for metric in ("greedy_generated", "top40@4", "regurgitated_from_prompts", "regurgitated_unprompted"):
                assert 0 <= measured[metric, population]["value"] <= 1
            confirmed = measured["teacher_forcing_confirmed", population]
            assert confirmed["n"] > 0
            assert confirmed["value"] == 1
        assert -1 <= measured["regurgitated_above_chance", "sensitive"]["value"] <= 1
