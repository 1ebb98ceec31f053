"""What flows where, on a plain model: one process is the same code as many ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from sani_dist.capacity.model import SavedBytes
from sani_dist.corpus.kinds import KindRows
from sani_dist.corpus.rows import LEARN, SENSITIVE, PackedRows, targets
from sani_dist.engine.zero3 import CausalModel
from sani_dist.erase.select import attribution, flows, summed_loss
from sani_dist.erase.structure import last_units

from .. import tiny
from ..distributed import plain


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pack(corpus, tiny_tokenizer, tmp_path_factory.mktemp("attribution"), notes=9, general=15)


@pytest.fixture(scope="module")
def by_kind(tokens: Path) -> KindRows:
    spans = pd.read_parquet(tokens / "token_spans.parquet")
    return KindRows(PackedRows(tokens / "repair.arrow"), spans[spans["split"] == "repair"])


@pytest.fixture(scope="module")
def engine(llama_folder: Path) -> Any:
    model = plain.load(llama_folder)
    return SimpleNamespace(model=model, forward=CausalModel(model), device=torch.device("cpu"))


def flow(engine: Any, rows: Any, roles: list[int], layers: int, units: str) -> Any:
    groups = last_units(engine.model, layers, units)  # type: ignore[arg-type]
    return attribution(engine, rows, len(rows), roles, groups, 1, lambda done: None)


def test_sensitive_tokens_have_a_role_for_their_kind(tokens: Path, by_kind: KindRows) -> None:
    assert by_kind.kinds == ("PERSON", "RECORD_NUMBER")
    everything = range(len(by_kind))
    true, kinds = PackedRows(tokens / "repair.arrow").batch(everything), by_kind.batch(everything)
    assert torch.equal(kinds.role.clamp(max=SENSITIVE), true.role)
    spans = pd.read_parquet(tokens / "token_spans.parquet")
    spans = spans[spans["split"] == "repair"]
    for role, kind in enumerate(by_kind.kinds, start=SENSITIVE + 1):
        of_kind = spans[spans["kind"] == kind]
        assert int((kinds.role == role).sum()) == int((of_kind["end"] - of_kind["first"]).sum()) > 0


def test_above_the_last_layer_a_kind_has_what_its_own_loss_gives_it(engine: Any, by_kind: KindRows) -> None:
    """No attention follows, so that all that flows stands where a token is predicted."""
    roles = [SENSITIVE, SENSITIVE + 1, SENSITIVE + 2]
    together = flow(engine, by_kind, roles, 1, "mlp")
    assert float(together.roles.sum()) == pytest.approx(float(together.units[0].sum()), rel=1e-6)
    for number, role in enumerate(roles):
        alone = flow(engine, by_kind, [role], 1, "mlp")
        assert alone.tokens == [together.tokens[number]]
        assert float(alone.units[0].sum()) == pytest.approx(float(together.roles[0, number]), rel=1e-5)
    assert together.tokens[0] == 0 < min(together.tokens[1:])


def test_further_down_some_flows_through_earlier_tokens(engine: Any, by_kind: KindRows, tokens: Path) -> None:
    roles = [SENSITIVE, SENSITIVE + 1, SENSITIVE + 2]
    found = flow(engine, by_kind, roles, 3, "both")
    for units, of_roles in zip(found.units, found.roles, strict=True):
        assert 0 < float(of_roles.sum()) <= float(units.sum()) * (1 + 1e-9)
    assert float(found.roles[0].sum()) < 0.999 * float(found.units[0].sum())
    general = PackedRows(tokens / "general_train.arrow")
    assert flow(engine, general, [LEARN], 1, "mlp").tokens == [int(general.learnable.sum())]


def test_backward_keeps_nothing_below_the_first_chosen_block(llama_folder: Path, tokens: Path) -> None:
    """The flows are the same, bit for bit; what autograd holds for them is that of the last of three blocks, and of the head."""
    model = plain.load(llama_folder)
    engine: Any = SimpleNamespace(model=model, forward=CausalModel(model), device=torch.device("cpu"))
    rows = PackedRows(tokens / "repair.arrow")
    batch = rows.batch([0])
    index, target, _, _ = targets(batch, (SENSITIVE,))

    def of_last_block(groups: Any) -> tuple[int, list[torch.Tensor]]:
        saved = SavedBytes(model)
        with saved:
            found = [flow for *_, flow in flows(engine, batch, partial(summed_loss, index, target), groups)]
        return saved.bytes, found

    last, both = last_units(model, 1, "mlp"), last_units(model, 3, "mlp")
    kept, (flow,) = of_last_block(last)
    all_kept, of_all = of_last_block(both)
    assert torch.equal(flow, of_all[-1])
    assert kept < 0.6 * all_kept
    assert torch.is_grad_enabled()
