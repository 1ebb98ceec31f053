"""What `sani-dist plan` says against what a forward pass keeps and what two real ranks allocate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import AutoConfig, PreTrainedModel
from typer.testing import CliRunner

from benchmarks import planned
from sani_dist.capacity import GPUS, Job, estimate, read_shape, shape_of
from sani_dist.capacity.estimate import memory
from sani_dist.capacity.model import SavedBytes
from sani_dist.cli import app
from sani_dist.errors import InputError

from .. import tiny
from .ranks import ROOT, run_ranks

REPAIR = {"epochs": 2, "batch_rows": 6, "micro_rows": 2, "retain": 0.5, "learning_rate": 1e-3, "seed": 11}
FILES = ("zero3.json", "zero3_cpu_offload.json")


def test_weights_and_optimizer_are_what_two_ranks_allocate(
    wide_vocabulary: Path, tokens: Path, changed: Callable[..., str], tmp_path: Path
) -> None:
    files = {name: changed(name, reduce_bucket_size=1000, stage3_param_persistence_threshold=0) for name in FILES}
    run_ranks(
        2, "allocated", tmp_path, files=files, model=str(wide_vocabulary), tokens=str(tokens), repair=REPAIR
    )  # fmt: skip
    for name, dtype, rank in itertools.product(FILES, ("bfloat16", "float32"), range(2)):
        shape = read_shape(wide_vocabulary, row_length=96, micro_rows=2, dtype=getattr(torch, dtype))
        zero = DeepSpeedZeroConfig(**json.loads(Path(files[name]).read_text())["zero_optimization"])
        device, host, nvme = memory(shape, zero, ranks=2)
        found = json.loads((tmp_path / f"{name}-{dtype}-{rank}.json").read_text())
        own = {part: device[part] + host[part] for part in ("weights", "gradients", "masters and moments")}
        assert own["weights"] == pytest.approx(found["weights"], rel=0.05)
        assert own["gradients"] == pytest.approx(found["gradients"], rel=0.05)
        assert own["masters and moments"] == pytest.approx(found["masters"] + found["moments"], rel=0.05)
        # Beside these there is what an optimizer on the host keeps between steps, and next to nothing.
        assert sum(own.values()) + host["buffers"] == pytest.approx(found["all"], rel=0.05)
        assert nvme == 0
        # The model is still there: an attack that trains holds masters and moments for as long as it trains, and no longer.
        assert found["closed"] < 1.1 * found["weights"] < 0.5 * found["all"]
        # One attack after the other loads the model anew.
        assert found["gone"] < 0.1 * found["weights"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_activations_are_what_a_forward_pass_keeps(make: Callable[[int], PreTrainedModel], dtype: torch.dtype) -> None:
    model = make(421).to(dtype).train()
    two_documents = torch.cat([torch.arange(20), torch.arange(44)]).repeat(3, 1)
    with (saved := SavedBytes(model)):
        model.base_model(
            input_ids=torch.randint(421, (3, 64)), position_ids=two_documents, use_cache=False
        ).last_hidden_state.sum()
    assert shape_of(model.config, 64, 3, dtype).activations == pytest.approx(saved.bytes, rel=0.05)
    assert model.config._attn_implementation == "sdpa"


def test_a_config_alone_is_enough(llama_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text((llama_folder / "config.json").read_text())
    shape = read_shape(file, 64, 1)
    whole = tiny.llama(AutoConfig.from_pretrained(llama_folder).vocab_size)
    assert shape.parameters == sum(p.numel() for p in whole.parameters())
    assert shape.multiplied == sum(
        p.numel() for name, p in whole.named_parameters() if p.dim() == 2 and "embed" not in name
    )
    with pytest.raises(InputError, match=r"has no config\.json"):
        read_shape(tmp_path / "nothing", 64, 1)


def test_gpus_share_what_zero3_shards_and_nothing_else() -> None:
    shape = planned.shapes()["8B"]
    one, many = (estimate(shape, Job(GPUS["h100"], gpus, gpus), ROOT / "ds_configs" / "zero3.json") for gpus in (1, 64))
    for part in ("weights", "gradients", "masters and moments"):
        assert one.device[part] == pytest.approx(64 * many.device[part], rel=1e-3)
    assert one.device["activations"] == many.device["activations"]
    assert not one.fits
    assert many.fits
    assert "usable" in one.why_not


def test_a_node_that_hpz_cannot_divide_does_not_fit() -> None:
    found = estimate(planned.shapes()["8B"], Job(GPUS["h100"], 12, 12), ROOT / "ds_configs" / "zero3_nodes.json")
    assert not found.fits
    assert found.why_not == "hpZ's groups of 8 do not divide 12 GPUs"


def test_the_command_says_what_fits(tmp_path: Path) -> None:
    planned.configs()["70B"].save_pretrained(tmp_path)
    invoked = CliRunner().invoke(app, ["plan", str(tmp_path / "config.json"), "--gpus", "8", "--gpu", "h100"])
    assert invoked.exit_code == 0, invoked.output
    lines = invoked.output.splitlines()
    assert any(line.startswith("zero3.json does not fit: ") and "GB of 73.6 usable" in line for line in lines)
    assert any(
        line.startswith("zero3_cpu_offload.json fits: ") and "GPU-hours for 100 million tokens" in line
        for line in lines
    )
    assert "not measured" in invoked.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "abacus"], "--gpu: expected one of a100, h100, h200, b200"),
        (["--gpu", "h100", "--ds-config", "nothing.json"], "cluster.ds_config: cannot read nothing.json"),
    ],
)
def test_what_cannot_be_planned_is_one_line(llama_folder: Path, arguments: list[str], message: str) -> None:
    invoked = CliRunner().invoke(app, ["plan", str(llama_folder), "--gpus", "8", *arguments])
    assert isinstance(invoked.exception, InputError)
    assert str(invoked.exception).startswith(message)


def test_the_pages_are_what_the_command_writes() -> None:
    """docs/planned.md and the table of ds_configs/README.md: after a change, `python benchmarks/planned.py`."""
    found = planned.shapes()
    assert planned.PAGE.read_text() == planned.page(found)
    readme = planned.README.read_text()
    assert readme == planned.with_table(readme, planned.readme_table(found))
