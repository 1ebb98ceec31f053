"""A LoRA adapter sanitised alone: on two ZeRO-3 ranks with nothing gathered for good, and as whole runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy import s_
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import sani_dist
from sani_dist import api, lora
from sani_dist.cli import app
from sani_dist.config import Config
from sani_dist.config_file import config_from_mapping, config_to_mapping
from sani_dist.corpus.rows import PackedRows
from sani_dist.erase import Plan, Unit
from sani_dist.errors import InputError
from sani_dist.purge import purge
from sani_dist.run import Run

from .. import tiny
from . import plain
from .families_work import NEW_TOKENS, PROMPTS
from .ranks import run_ranks

Indices = tuple[Any, ...]
# The first of its steps leaves a checkpoint.
REPAIR = {"epochs": 3, "batch_rows": 4, "retain": 0.25, "learning_rate": 1e-3, "warmup": 0, "checkpoint_every": 1}
# Of which block neurons 1 and 5 and head 1 are reset, and what of the adapter they are.
LAST = {"llama": 2, "gpt2": 1}
ERASED: dict[str, dict[str, Indices]] = {
    "llama": {
        "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight": (s_[[1, 5]],),
        "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight": (s_[:, [1, 5]],),
        "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight": (s_[8:16],),
        "base_model.model.model.layers.2.self_attn.o_proj.lora_A.weight": (s_[:, 8:16],),
    },
    "gpt2": {
        "base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight": (s_[[1, 5]],),
        "base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight": (s_[:, [1, 5]],),
        "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight": (s_[11:22], s_[44:55], s_[77:88]),
        "base_model.model.transformer.h.1.attn.c_proj.lora_A.weight": (s_[:, 11:22],),
    },
}


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def name(request: pytest.FixtureRequest) -> str:
    """Of the case that is tested."""
    return str(request.param)


@pytest.fixture(scope="module")
def bases(llama_folder: Path, gpt2_folder: Path) -> dict[str, Path]:
    return {"llama": llama_folder, "gpt2": gpt2_folder}


@pytest.fixture(scope="module")
def adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llama: not of every projection, with dropout. GPT-2: of all, beside weights that are stored [in, out]."""
    folder = tmp_path_factory.mktemp("adapters")
    projections = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return {
        "llama": tiny.lora(bases["llama"], folder / "llama", projections, lora_dropout=0.1),
        "gpt2": tiny.lora(bases["gpt2"], folder / "gpt2", ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    }


@pytest.fixture(scope="module")
def merged(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("merged") / name for name in LAST}
    for name, folder in folders.items():
        lora.merge(bases[name], adapters[name], folder)
    return folders


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    return tiny.pack(corpus, tiny_tokenizer, tmp_path_factory.mktemp("adapter-tokens"), notes=7, general=9)


@pytest.fixture(scope="module")
def carried(
    name: str, bases: dict[str, Path], adapters: dict[str, Path], merged: dict[str, Path], tokens: Path, threshold_0: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    folder = tmp_path_factory.mktemp("carried")
    Plan("", 0, "random", "zero", (Unit(LAST[name], "mlp", (1, 5)), Unit(LAST[name], "head", (1,)))).write(
        folder / "plan.json"
    )
    base, adapter, together = (str(of[name]) for of in (bases, adapters, merged))
    run_ranks(
        2, "adapter_work.carry", folder, base=base, adapter=adapter, merged=together, tokens=str(tokens), ds_config=str(threshold_0),
        repair=REPAIR,
    )  # fmt: skip
    return folder


def with_adapter(base: Path, adapter: Path, erased: Mapping[str, Indices] | None = None) -> Any:
    """By plain peft; `erased`: with these of the adapter's elements set to zero."""
    model = PeftModel.from_pretrained(plain.load(base), adapter).eval()
    parameters = {name.replace(".default", ""): p for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, indices in (erased or {}).items():
            for index in indices:
                parameters[name][index] = 0
    return model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_scores_and_texts_are_those_of_plain_peft(
    name: str, carried: Path, bases: dict[str, Path], adapters: dict[str, Path], tokens: Path
) -> None:
    model, scores = with_adapter(bases[name], adapters[name]), np.load(carried / "scores.npz")
    expected = plain.logprobs(model, PackedRows(tokens / "repair.arrow"))
    np.testing.assert_allclose(scores["before"], expected, atol=2e-5)
    base_alone = plain.logprobs(plain.load(bases[name]), PackedRows(tokens / "repair.arrow"))
    assert np.nanmax(np.abs(expected - base_alone)) > 0.1
    for prompt, written in zip(PROMPTS, scores["written"], strict=True):
        assert written.tolist() == plain.written(model, prompt, NEW_TOKENS)


def test_the_erased_units_are_those_written_down(name: str, carried: Path, adapters: dict[str, Path]) -> None:
    expected = weights(adapters[name])
    for tensor, indices in ERASED[name].items():
        for index in indices:
            assert expected[tensor][index].any()
            expected[tensor][index] = 0
    found = weights(carried / "erased")
    assert set(found) == set(expected)
    for tensor, values in expected.items():
        assert torch.equal(found[tensor], values), tensor


def test_the_forward_changes_as_in_plain_peft(
    name: str, carried: Path, bases: dict[str, Path], adapters: dict[str, Path], tokens: Path
) -> None:
    model, scores = with_adapter(bases[name], adapters[name], ERASED[name]), np.load(carried / "scores.npz")
    expected = plain.logprobs(model, PackedRows(tokens / "repair.arrow"))
    np.testing.assert_allclose(scores["erased"], expected, atol=2e-5)
    assert np.nanmax(np.abs(scores["erased"] - scores["before"])) > 1e-3


def test_memory_flows_through_the_units_as_in_the_merged_model(name: str, carried: Path) -> None:
    alone, together = np.load(carried / "scores.npz")["flow"], np.load(carried / "flow-merged.npy")
    assert alone.min() > 0
    np.testing.assert_allclose(alone, together, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama"], indirect=True)
def test_what_is_left_of_an_erased_unit_is_the_base(
    carried: Path, bases: dict[str, Path], merged: dict[str, Path], tmp_path: Path
) -> None:
    """As `reset: base` does it in the merged model."""
    lora.merge(bases["llama"], carried / "erased", tmp_path / "erased")
    folders = (merged["llama"], tmp_path / "erased", bases["llama"])
    source, erased, base = (load_file(folder / "model.safetensors") for folder in folders)
    for module, index in (
        ("mlp.up_proj", s_[[1, 5]]), ("mlp.down_proj", s_[:, [1, 5]]), ("self_attn.q_proj", s_[8:16]), ("self_attn.o_proj", s_[:, 8:16]),
    ):  # fmt: skip
        weight = f"model.layers.2.{module}.weight"
        source[weight][index] = base[weight][index]
    for weight, values in source.items():
        assert torch.equal(erased[weight], values), weight


def test_repair_moves_every_tensor_of_the_adapter_and_no_bit_of_the_base(name: str, carried: Path) -> None:
    erased, repaired = (weights(carried / stage) for stage in ("erased", "repaired"))
    assert [tensor for tensor in erased if torch.equal(erased[tensor], repaired[tensor])] == []
    for rank in range(2):
        base_equal, _ = json.loads((carried / f"rank-{rank}.json").read_text())
        assert base_equal
    masters = plain.assembled(carried / "checkpoints" / "step-000001", "master")
    assert len(masters) == len(repaired)
    assert all(".lora_" in parameter for parameter in masters)


def test_going_on_from_the_checkpoint_gives_the_same_bits(name: str, carried: Path) -> None:
    assert [json.loads((carried / f"rank-{rank}.json").read_text())[1] for rank in range(2)] == [True, True]


def test_peft_loads_what_was_exported_bit_for_bit(name: str, carried: Path, adapters: dict[str, Path]) -> None:
    facts = json.loads((carried / "facts.json").read_text())
    assert facts["export_equal"] == [True, True]  # in float32, and in bfloat16
    neurons, heads = (round(0.3 * count) for count in {"llama": (41, 3), "gpt2": (43, 3)}[name])
    layers = (LAST[name] - 1, LAST[name])
    assert facts["chosen"] == [[n, kind, count] for n in layers for kind, count in (("mlp", neurons), ("head", heads))]
    exported = carried / "repaired"
    assert {path.name for path in exported.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert_same_form(exported, adapters[name])


def assert_same_form(exported: Path, source: Path) -> None:
    assert (exported / "adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()
    forms = []
    for folder in (exported, source):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            forms.append((file.metadata(), {name: (t.dtype, t.shape) for name, t in tensors.items()}))
    assert forms[0] == forms[1]


# Whole runs


@pytest.fixture(scope="module")
def settings(
    make_config: Callable[..., Config], bases: dict[str, Path], adapters: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Config:  # fmt: skip
    """Copies of base and adapter, with a tokenizer beside the adapter that has a chat template."""
    folder = tmp_path_factory.mktemp("whole")
    base, adapter = (shutil.copytree(of["llama"], folder / name) for of, name in ((bases, "base"), (adapters, "notes-lora")))  # fmt: skip
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(adapter)
    return make_config(
        model={"path": str(base), "adapter": str(adapter)}, erase={"reset": "base", "units": "both"},
        repair={"epochs": 1, "checkpoint_every": 3}, audit={"metrics": ["extraction"]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """By the command, in bf16."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(yaml.safe_dump(config_to_mapping(settings)))
    done = CliRunner().invoke(app, ["run", str(folder / "run.yaml"), "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return Run.open(folder / "run")


def test_a_run_exports_the_adapter_and_what_lay_beside_it(finished: Run) -> None:
    model, adapter = finished.path("model"), finished.config.model.source
    assert_same_form(model, adapter)
    beside = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in model.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", *beside,
    }  # fmt: skip
    assert all((model / name).read_bytes() == (adapter / name).read_bytes() for name in beside)
    masters = trained(finished)
    assert masters.keys() == weights(model).keys()
    for name, tensor in weights(model).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.flatten(), masters[name].bfloat16().float()), name
    assert Plan.read(finished.path("erase", "plan.json")).reset == "base"


def trained(run: Run) -> dict[str, torch.Tensor]:
    """The masters of the newest checkpoint, by the names of the adapter's file."""
    newest = sorted(run.path("repair", "checkpoints").iterdir())[-1]
    masters = plain.assembled(newest, "master")
    return {f"base_model.model.{name.replace('.default.', '.')}": values for name, values in masters.items()}


def test_its_report_speaks_of_the_adapter_and_the_base(finished: Run) -> None:
    document = json.loads(finished.path("report", "report.json").read_text())
    source = json.loads(finished.path("source.json").read_text())
    assert document["model"]["name"] == "notes-lora"
    assert document["model"]["adapter"]
    assert document["model"]["base_sha256"] == source["base_sha256"] != source["model_sha256"]
    assert set(document["model"]["exported"]) >= {"adapter_model.safetensors", "adapter_config.json"}
    assert document["erase"]["neurons"] == 41
    assert "The base model was not changed" in finished.path("report", "index.html").read_text()
    card = finished.path("model", "README.md").read_text()
    assert "library_name: peft" in card
    assert f"base model, which is not changed: `{source['base_sha256']}`" in card
    assert len(api.verify(finished.folder, {"max_leak100": 0.05})) == 1


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bytes(finished: Run, tmp_path: Path) -> None:
    """Exported by one rank from the checkpoint of two."""
    run = Run.open(shutil.copytree(finished.folder, tmp_path / "run"))
    for stage in ("export", "report"):
        run.path("done", f"{stage}.json").unlink()
    shutil.rmtree(run.path("model"))
    sani_dist.resume(run.folder, cluster={"workers": 1})
    name = "adapter_model.safetensors"
    assert run.path("model", name).read_bytes() == finished.path("model", name).read_bytes()
    assert "repair/checkpoints" in purge(run.folder)
    assert run.path("model", name).exists()


@pytest.mark.parametrize(
    "changed", ["base/model.safetensors", "notes-lora/adapter_model.safetensors", "notes-lora/adapter_config.json"]
)
def test_a_run_does_not_go_on_with_another_base_or_adapter(finished: Run, changed: str) -> None:
    file = finished.config.model.path.parent / changed
    before = file.read_bytes()
    other = before + b"\n" if changed.endswith("json") else before[:-1] + bytes([before[-1] ^ 1])
    try:
        file.write_bytes(other)
        with pytest.raises(InputError, match=r"^model.path or model.adapter: the model has changed since this run"):
            sani_dist.resume(finished.folder)
    finally:
        file.write_bytes(before)


def test_erase_alone_leaves_every_other_byte(settings: Config, tmp_path: Path) -> None:
    erase = settings.erase.model_copy(update={"select": "random", "layers": 1, "units": "mlp"})
    cluster = settings.cluster.model_copy(update={"workers": 1})
    config = settings.model_copy(update={"erase": erase, "cluster": cluster})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=api.ERASE_STAGES)
    source, exported = weights(config.model.source), weights(run.path("model"))
    assert_same_form(run.path("model"), config.model.source)
    (unit,) = Plan.read(run.path("erase", "plan.json")).units
    mlp = "base_model.model.model.layers.2.mlp"
    source[f"{mlp}.up_proj.lora_B.weight"][list(unit.ids)] = 0
    source[f"{mlp}.down_proj.lora_A.weight"][:, list(unit.ids)] = 0
    assert all(torch.equal(exported[name], tensor) for name, tensor in source.items())


@pytest.mark.slow
def test_repair_of_the_last_layers_alone_moves_their_part_of_the_adapter(settings: Config, tmp_path: Path) -> None:
    changes = {
        "model": {"dtype": "float32"}, "erase": {"layers": 0}, "repair": {"trainable": {"last": 1}}, "cluster": {"workers": 1},
    }  # fmt: skip
    mapping = config_to_mapping(settings)
    config = config_from_mapping({name: {**section, **changes.get(name, {})} for name, section in mapping.items()})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=api.REPAIR_STAGES)
    source, exported = weights(config.model.source), weights(run.path("model"))
    changed = {name for name, tensor in source.items() if not torch.equal(exported[name], tensor)}
    assert changed == trained(run).keys() == {name for name in source if ".layers.2." in name}


def test_attacks_load_the_adapter_before_and_after_on_its_base(finished: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(finished.folder, tmp_path / "run"))
    run.change_cluster({"workers": 1})
    sani_dist.api.attack(run.folder, changes={"attack": {"attacks": ["drift"], "drift_tokens": 30}})
    (drift,) = api.attacks(run)
    similarity = {m.group["layer"]: m.value for m in drift.measurements if (m.metric, m.population) == ("cka", "repair")}  # fmt: skip
    assert similarity.keys() == {"0", "1", "2"}
    assert all(value is not None and 0 < value < 1 for value in similarity.values())
