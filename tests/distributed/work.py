"""What the ranks of the distributed tests do: the stages themselves, with their results left in files for the test to compare."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_local_fp32_param
from safetensors.torch import load_file
from transformers import AutoTokenizer

from sani_dist.audit.harness import harness
from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import score
from sani_dist.config import AuditSettings, EraseSettings, RepairSettings
from sani_dist.corpus.rows import AIM, LEARN, PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.checkpoint import State, load_newest, save
from sani_dist.engine.communication import logged
from sani_dist.engine.export import export
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
from sani_dist.erase import Plan, Unit, apply, select
from sani_dist.erase.structure import last_units
from sani_dist.errors import RunError
from sani_dist.repair import Predictions, Progress, places_of, predictions, states_below, train
from sani_dist.repair.schedule import Schedule

INPUTS = "the same inputs"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def carry_through(
    folder: Path, *, cases: list[dict[str, Any]], tokens: str, repair: dict[str, Any], resume: str
) -> None:
    """Each case: load, select, erase, export, look at the forward, then train one step (world size 2) or resume from that step."""
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    for case in cases:
        _carry(folder / case["name"], case, rows, RepairSettings.model_validate(repair), Path(resume) / case["name"])


def _carry(
    folder: Path, case: dict[str, Any], rows: dict[str, PackedRows], repair: RepairSettings, resume: Path
) -> None:
    folder.mkdir(exist_ok=True)
    dtype = DTYPES[case["dtype"]]
    ds_config = read_ds_config(Path(case["ds_config"]) if case["ds_config"] else None, dtype)
    engine = Engine(load_sharded(Path(case["model"]), ds_config, dtype), ds_config)
    _assert_loaded(engine, Path(case["model"]), dtype)

    engine.for_inference()
    before = score(engine, rows["repair"], micro_rows=2)
    settings = EraseSettings.model_validate(case["erase"])
    plan = select(engine, rows["repair"], [rows["general_train"]], settings, source_sha256="source")
    _write(folder / "plan.json", plan.write)
    for name, changes in case["others"].items():
        other_settings = EraseSettings.model_validate({**case["erase"], **changes})
        other = select(engine, rows["repair"], list(rows.values()), other_settings, source_sha256="source")
        _write(folder / f"plan-{name}.json", other.write)
    apply(local_shards(engine.model), last_units(engine.model, settings.layers, settings.units), plan)
    erased = {live.shard.name: live.values.clone() for live in local_shards(engine.model)}
    after = score(engine, rows["repair"], micro_rows=2)
    _write(folder / "scores.npz", partial(_write_scores, before=before, after=after))
    export(local_shards(engine.model), Path(case["model"]), folder / "erased", dtype=dtype)
    if not case["train"]:
        return

    engine.for_training(repair)
    for name, parameter in engine.model.named_parameters():
        master = safe_get_local_fp32_param(parameter)[: erased[name].numel()]
        assert torch.equal(master, erased[name].float()), f"the master of {name} does not start from the erased values"
    if distributed.world_size() == 2:
        reached = train(
            engine, [rows["repair"]] * len(repair.text_of_epochs), rows["general_train"], repair, State(0, INPUTS),
            stop=lambda state: state.step == 1,
            save=lambda state: save(resume, engine, state),
        )  # fmt: skip
    else:
        loaded = load_newest(resume, engine, INPUTS)
        assert loaded is not None
        reached = loaded
        save(folder / "again", engine, loaded)
    assert reached.step == 1
    for name, parameter in engine.model.named_parameters():
        master = safe_get_local_fp32_param(parameter)[: erased[name].numel()]
        moved = (master - erased[name].float()).abs().max().item() if master.numel() else 0.0
        # Adam's first step moves no weight by more than the learning rate: what was erased has not come back.
        assert moved <= 1.001 * repair.learning_rate, f"{name} moved by {moved}"
    trained = score(engine, rows["repair"], micro_rows=2)
    _write(folder / "trained.npz", partial(_write_scores, before=after, after=trained))
    export(local_shards(engine.model), Path(case["model"]), folder / "trained", dtype=dtype)


def _assert_loaded(engine: Engine, source: Path, dtype: torch.dtype) -> None:
    stored = {name: t for file in sorted(source.glob("*.safetensors")) for name, t in load_file(file).items()}
    seen = 0
    for live in local_shards(engine.model):
        shard = live.shard
        whole = stored[shard.name].to(dtype).flatten()
        assert torch.equal(live.values, whole[shard.start : shard.stop]), shard
        seen += 1
    assert seen == len(stored)


def generated(folder: Path, *, model: str, ds_config: str, prompts: list[list[int]], new_tokens: list[int]) -> None:
    """Greedy and sampled texts in fp32, with the weights sharded and with all of them kept: `{way}.npz`, prompt number -> tokens."""
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(Path(model), config, torch.float32), config)
    engine.for_inference()
    asked = [Prompt(np.array(ids), count) for ids, count in zip(prompts, new_tokens, strict=True)]
    for whole in (False, True):
        for name, decoding in (("greedy", Decoding()), ("sampled", Decoding(60, 5, 0.7, seed=3))):
            found = generate(engine, asked, decoding, rows=120, whole=whole)
            arrays = {str(i): lines for i, lines in enumerate(found)}
            _write(folder / f"{name}-{'whole' if whole else 'sharded'}.npz", partial(np.savez, **arrays))
    partitioned = [p.ds_status.name for p in engine.module.parameters()]
    assert set(partitioned) == {"NOT_AVAILABLE"}, "weights stayed gathered"


def asked_by_harness(folder: Path, *, model: str, ds_config: str, tasks: list[str], include: str) -> None:
    """What the tasks measure of a model in fp32: harness.json, [[metric, value, n]]."""
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(Path(model), config, torch.float32), config)
    engine.for_inference()
    settings = AuditSettings.model_validate({"harness": {"tasks": tasks, "include": include}, "micro_rows": 2})
    measured = harness(engine, AutoTokenizer.from_pretrained(model), settings, row_length=64)
    found = [[m.metric, m.value, m.low, m.high, m.n] for m in measured]
    _write(folder / "harness.json", lambda path: path.write_text(json.dumps(found)))


def under_ds_configs(
    folder: Path, *, files: dict[str, str], model: str, tokens: str, repair: dict[str, Any], erase: dict[str, Any]
) -> None:
    """Under each DeepSpeed file: erase between two forward passes, then train two steps, and once more the second from a checkpoint."""
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    for name, file in files.items():
        (folder / name).mkdir(exist_ok=True)
        ds_config = read_ds_config(Path(file), torch.bfloat16)
        _stop_and_go_on(
            folder / name, ds_config, Path(model), rows, RepairSettings.model_validate(repair), EraseSettings.model_validate(erase)
        )  # fmt: skip


def _stop_and_go_on(
    folder: Path, ds_config: dict[str, Any], model: Path, rows: dict[str, PackedRows], repair: RepairSettings, erase: EraseSettings
) -> None:  # fmt: skip
    losses: list[float] = []
    for part in ("undisturbed", "resumed"):
        engine = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
        engine.for_inference()
        plan = select(engine, rows["repair"], [rows["general_train"]], erase, source_sha256="source")
        before = score(engine, rows["repair"], micro_rows=2)  # gathers, and copies, what is edited next
        apply(local_shards(engine.model), last_units(engine.model, erase.layers, erase.units), plan)
        after = score(engine, rows["repair"], micro_rows=2)
        if part == "undisturbed":
            _write(folder / "scores.npz", partial(_write_scores, before=before, after=after))
            export(local_shards(engine.model), model, folder / "erased", dtype=torch.bfloat16)
        engine.for_training(repair)
        state = load_newest(folder / "checkpoints", engine, INPUTS) or State(0, INPUTS)
        train(
            engine, [rows["repair"]], rows["general_train"], repair, state,
            stop=lambda state: state.step == 2,
            save=partial(_save_the_first, folder / "checkpoints", engine),
            report=lambda progress: losses.append(progress.loss),
        )  # fmt: skip
        export(local_shards(engine.model), model, folder / part, dtype=torch.bfloat16)
    _write(folder / "losses.json", lambda path: path.write_text(json.dumps(losses)))


def _save_the_first(folder: Path, engine: Engine, state: State) -> None:
    if state.step == 1:
        save(folder, engine, state)


def allocated(folder: Path, *, files: dict[str, str], model: str, tokens: str, repair: dict[str, Any]) -> None:
    """Bytes that this rank's tensors hold after a step, under each DeepSpeed file and dtype: by what they are for, and all together;
    after the engine was closed, and when nobody holds it."""
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    settings = RepairSettings.model_validate(repair)
    for (name, file), (called, dtype) in itertools.product(files.items(), DTYPES.items()):
        before = _bytes(t for t in gc.get_objects() if isinstance(t, torch.Tensor))
        ds_config = read_ds_config(Path(file), dtype)
        engine = Engine(load_sharded(Path(model), ds_config, dtype), ds_config)
        engine.for_training(settings)
        train(
            engine, [rows["repair"]], rows["general_train"], settings, State(0, INPUTS), stop=lambda state: state.step == 1
        )  # fmt: skip
        zero = engine.ds.optimizer
        states = [t for state in zero.optimizer.state.values() for t in state.values() if t.dim()]
        found = {
            "weights": _bytes(p.ds_tensor for p in engine.model.parameters()),
            "gradients": _bytes([zero.grad_partitions_flat_buffer]),
            "masters": _bytes(zero.fp32_partitioned_groups_flat),
            "moments": _bytes(states),
            "all": _bytes(t for t in gc.get_objects() if isinstance(t, torch.Tensor)) - before,
        }
        del zero, states
        score(engine, rows["repair"], 2)  # from its second batch on, DeepSpeed follows the order of the first
        engine.close()
        found["closed"] = _bytes(t for t in gc.get_objects() if isinstance(t, torch.Tensor)) - before
        del engine
        gc.collect()
        found["gone"] = _bytes(t for t in gc.get_objects() if isinstance(t, torch.Tensor)) - before
        (folder / f"{name}-{called}-{distributed.rank()}.json").write_text(json.dumps(found))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of all memory that these hold, each piece once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def first_step_gradient(
    folder: Path, *, model: str, ds_config: str, tokens: str, repair: dict[str, Any],
    teacher: str | None = None, erased: Sequence[int] = (), base: str | None = None,
) -> None:  # fmt: skip
    """One step in fp32; its first moments, which are (1 - beta1) times the gradient, are left in a checkpoint. `teacher`: folder of what
    the model predicts before neurons `erased` of the last layer are zeroed. `base`: of the model that sensitive tokens are drawn to."""
    settings = RepairSettings.model_validate(repair)
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(Path(model), config, torch.float32), config)
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    if base is not None:
        rows = {name: of.aimed() for name, of in rows.items()}
    texts, taught = [rows["repair"]] * len(settings.text_of_epochs), None
    if teacher is not None:
        places, top = places_of(settings, texts, rows["general_train"]), settings.objectives.kl_top
        folders = {LEARN: Path(teacher)}
        predictions(engine, places, folders[LEARN], top, INPUTS)
        if base is not None:
            folders[AIM] = Path(teacher).with_name("reference")
            knew_nothing = Engine(load_sharded(Path(base), config, torch.float32), config)
            predictions(knew_nothing, places, folders[AIM], top, INPUTS, AIM)
            knew_nothing.close()
        taught = Predictions(folders, places, top)
    units = last_units(engine.model, 1, "mlp")
    plan = Plan("", 0, "random", "zero", (Unit(units[0].layer, "mlp", tuple(erased)),))
    apply(local_shards(engine.model), units, plan)
    engine.for_training(settings)
    reports = []
    train(
        engine, texts, rows["general_train"], settings, State(0, INPUTS), taught=taught,
        stop=lambda state: state.step == 1,
        save=lambda state: save(folder / "checkpoints", engine, state),
        report=reports.append,
    )  # fmt: skip
    _write(folder / "loss.json", lambda path: path.write_text(json.dumps(reports[0].loss)))


def gradient_that_is_not_finite(
    folder: Path, *, model: str, ds_config: str, tokens: str, repair: dict[str, Any]
) -> None:
    """The last step of training has a good loss on every rank, and on rank 1 a gradient of NaN. Each rank leaves what it raised."""
    settings = RepairSettings.model_validate(repair)
    config = read_ds_config(Path(ds_config), torch.bfloat16)
    engine = Engine(load_sharded(Path(model), config, torch.bfloat16), config)
    engine.for_training(settings)
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    texts = [rows["repair"]] * len(settings.text_of_epochs)
    last = Schedule(settings, texts, rows["general_train"]).steps - 1
    module = importlib.import_module("sani_dist.repair.train")  # the package's `train` is the function
    reached, loss_of = [0], module._loss

    def poisoned(*arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = loss_of(*arguments)
        return _NanBackward.apply(loss) if distributed.rank() == 1 and reached[-1] == last else loss

    module._loss = poisoned
    raised = None
    try:
        train(
            engine, texts, rows["general_train"], settings, State(0, INPUTS),
            stop=lambda state: bool(reached.append(state.step)),
            save=lambda state: save(folder / "checkpoints", engine, state),
        )  # fmt: skip
    except RunError as error:
        raised = str(error)
    (folder / f"raised-{distributed.rank()}.json").write_text(json.dumps({"last": last + 1, "raised": raised}))


class _NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan


def _write(path: Path, write: Any) -> None:
    if distributed.rank() == 0:
        write(path)
    distributed.barrier()


def _write_scores(path: Path, before: Any, after: Any) -> None:
    np.savez(
        path,
        before=before.logprob, before_argmax=before.is_argmax, after=after.logprob, after_argmax=after.is_argmax,
    )  # fmt: skip


def train_the_last_layer(
    folder: Path, *, cases: list[dict[str, Any]], model: str, ds_config: str, tokens: str, repair: dict[str, Any]
) -> None:
    """Each case: `kept` computes the trunk once for each row, else in every step; it stops after step `stop`, or goes on from there;
    `checkpointing`: of activations."""
    for case in cases:
        _train_the_last_layer(folder / case["name"], case, Path(model), Path(ds_config), Path(tokens), repair)


def _train_the_last_layer(
    folder: Path, case: dict[str, Any], model: Path, ds_config: Path, tokens: Path, repair: dict[str, Any]
) -> None:
    settings = RepairSettings.model_validate({**repair, "activation_checkpointing": case["checkpointing"]})
    config = read_ds_config(ds_config, torch.float32)
    engine = Engine(load_sharded(model, config, torch.float32), config)
    engine.freeze_first_layers(1)
    rows = {name: PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train")}
    texts = [rows["repair"]] * len(settings.text_of_epochs)
    states = None
    if case["kept"]:
        places = places_of(settings, texts, rows["general_train"])
        states = states_below(engine, places, folder / "trunk", INPUTS)
    engine.for_training(settings)
    reached = load_newest(folder / "checkpoints", engine, INPUTS) or State(0, INPUTS)
    train(
        engine, texts, rows["general_train"], settings, reached,
        states=states,
        stop=lambda state: state.step == case["stop"],
        save=lambda state: save(folder / "checkpoints", engine, state),
    )  # fmt: skip
    engine.module.eval()
    scores = score(engine, rows["repair"], micro_rows=2)
    _write(folder / "scores.npy", lambda path: np.save(path, scores.logprob))
    export(local_shards(engine.model), model, folder / "exported", dtype=torch.float32)


def bytes_of_a_step(
    folder: Path, *, cases: list[dict[str, Any]], model: str, tokens: str, repair: dict[str, Any]
) -> None:
    """Each case: what DeepSpeed logs of the second step, and the elements of the parameters that are gathered and trained."""
    settings = RepairSettings.model_validate(repair)
    rows = {name: PackedRows(Path(tokens) / f"{name}.arrow") for name in ("repair", "general_train")}
    texts = [rows["repair"]] * len(settings.text_of_epochs)
    for case in cases:
        config = read_ds_config(Path(case["ds_config"]) if case["ds_config"] else None, torch.bfloat16)
        engine = Engine(load_sharded(Path(model), config, torch.bfloat16), config)
        engine.for_inference()  # as an audit does: nothing of it may stay behind
        engine.forward(*(torch.zeros(1, 9, dtype=torch.int64),) * 2, lambda *_: None)
        states = None
        if case["last"]:
            engine.freeze_first_layers(case["last"])
            places = places_of(settings, texts, rows["general_train"])
            states = states_below(engine, places, folder / case["name"] / "trunk", INPUTS)
        engine.for_training(settings)
        found: list[dict[str, int]] = []
        second_step = ExitStack()

        def around_the_second_step(progress: Progress, found: Any = found, second_step: Any = second_step) -> None:
            if progress.step == 1:
                found.append(second_step.enter_context(logged()))
            else:
                second_step.close()

        train(
            engine, texts, rows["general_train"], settings, State(0, INPUTS),
            states=states, report=around_the_second_step, stop=lambda state: state.step == 2,
        )  # fmt: skip
        below = case["last"] and {id(p) for m in blocks_of(engine.model)[: -case["last"]] for p in m.parameters()}
        embedding = engine.model.get_input_embeddings().weight
        gathered = [
            p.ds_numel
            for p in engine.model.parameters()
            if not below
            or (id(p) not in below and p is not embedding)  # the output projection is a parameter of its own
        ]
        trained = [p.ds_numel for p in engine.model.parameters() if p.requires_grad]
        document = {"logged": found[0], "gathered": gathered, "trained": trained, "micro_batches": engine.accumulation}
        (folder / f"{case['name']}-{distributed.rank()}.json").write_text(json.dumps(document))
        engine.close()
