"""What can be refused before any rank starts, without weights or text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sani_dist.audit.harness import check_tasks
from sani_dist.config import Config, EraseSettings
from sani_dist.engine.checkpoint import check_checkpoints
from sani_dist.engine.frozen_layers import FrozenLayers, recompute_trained
from sani_dist.engine.layout import check_complete
from sani_dist.engine.proof import alone
from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.source import Source, open_source
from sani_dist.engine.zero3 import build_empty, check_head, read_ds_config, read_model_config
from sani_dist.erase import share
from sani_dist.erase.structure import Units, last_units, parameter_names
from sani_dist.errors import InputError
from sani_dist.run import Run, read_json
from sani_dist.stage_list import ORDER


def check(config: Config) -> dict[str, Any]:
    """Everything about model and settings that can be known without loading weights or text; what a dry run prints.

    Raises InputError with one line. Returns the counts that describe the run.
    """
    check_tasks(config.audit.harness)
    source = open_source(config.model)
    read_ds_config(config.cluster.ds_config, source.dtype)
    model, layout = source.empty()
    told = notes(config, source, model)
    chooses = config.erase.layers and not config.erase.begins_at_base
    units = last_units(model, config.erase.layers, config.erase.units) if chooses else []
    if config.erase.reset == "base":
        everything = {name for name, _ in model.named_parameters()}
        source.base_layout(model, everything if config.erase.begins_at_base else parameter_names(units))
    if "use" in config.audit.metrics and not source.masked:
        _check_base(source)
    if source.masked:
        _check_masked(config, model, source.tokenizer)
    for name, other in (("audit.reference", config.audit.reference), ("attack.gold", config.attack.gold)):
        if other is not None:
            _check_other(name, other, source, rows_alone(config, source))
    objectives = config.repair.objectives
    if objectives.aim and config.reference == "base" and config.model.base is not None:
        _check_other("model.base", config.model.base, source, rows_alone(config, source))
        if source.before_training() is None:
            raise InputError(
                "model.base: its vocabulary is of another size than that of model.path; set objectives.reference: others"
            )
    if (objectives.kl or objectives.aim) and objectives.kl_top >= model.config.get_text_config().vocab_size:
        raise InputError("repair.objectives.kl_top: expected fewer tokens than the vocabulary has")
    parameters = sum(p.numel() for p in model.parameters())
    trained = _count_trained(config, source, model)
    exported = sum(tensor.numel for tensor in source.exported.values())
    return {
        "architecture": type(model).__name__,
        "parameters": parameters,
        "layers": model.config.num_hidden_layers,
        "neurons_reset": _count_reset([group for group in units if group.kind == "mlp"], config.erase),
        "heads_reset": _count_reset([group for group in units if group.kind == "head"], config.erase),
        "streamed": layout is not None,
        "notes": told,
        "model_bytes": parameters * source.dtype.itemsize,
        # Two checkpoints of masters and two moments in fp32, and the exported model.
        "disk_bytes": exported * source.dtype.itemsize + (trained * 12 * 2 if config.repair.epochs else 0),
        # Weights in the run's precision; gradients, masters and two moments in fp32.
        "training_bytes": parameters * source.dtype.itemsize + trained * 16,
    }


def rows_alone(config: Config, source: Source) -> bool:
    """Whether each document gets a row of its own: as the settings say, or because the model sees others in its row."""
    return config.corpus.packing == "none" or source.alone


def notes(config: Config, source: Source, model: PreTrainedModel) -> list[str]:
    """Lines about how a model is run, where that is not the usual."""
    name, found = type(model).__name__, []
    if not source.proof.shown:
        found.append(f"{name}: no small model like it could be made, so nothing was shown about it before loading")
    if rows_alone(config, source) and not source.masked:
        found.append(
            f"{name}: each document has rows of its own (corpus.packing: none), since it would see others in its row"
        )
    if unread := source.unread(model):
        found.append(
            f"{name}: {len(unread)} stored tensors are no part of it, {unread[0]} the first: an export after repair lacks them"
        )
    return found


def check_attackable(config: Config) -> None:
    """Raises InputError for a model that attacks cannot ask."""
    if open_source(config.model).masked:
        raise InputError("attack: not for a masked language model, which does not go on with a text")


def check_unchanged(run: Run) -> None:
    """Raises InputError when the model's files, or the settings of a run that has begun repair, are not those it started with."""
    model = run.config.model
    if read_json(run.path("source.json")) != open_source(model).hashes():
        given = [f"model.{name}" for name in ("path", "adapter", "base") if getattr(model, name) is not None]
        raise InputError(
            f"{' or '.join(given)}: the model has changed since this run started; start a new run for the new model"
        )
    before = [stage for stage in ORDER[: ORDER.index("repair")] if stage in run.stages]
    if all(run.path("done", f"{stage}.json").exists() for stage in before):
        check_checkpoints(run.path("repair", "checkpoints"), run.inputs_sha256("repair"))


def _check_masked(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    check_head(model)
    if tokenizer.mask_token_id is None:
        raise InputError("model.path: a masked language model, but its tokenizer has no mask token")
    if config.model.adapter is not None:
        raise InputError("model.adapter: not for a masked language model; merge it with peft, and sanitise the model")
    if config.repair.objectives.kl:
        raise InputError("repair.objectives.kl: not for a masked language model, whose rows differ from step to step")
    if config.repair.objectives.aim:
        raise InputError(
            "repair.objectives.aim: not for a masked language model, whose sensitive tokens are never hidden in training; set it to 0"
        )
    if config.repair.trainable != "all":
        raise InputError("repair.trainable: not for a masked language model, whose rows differ from step to step")
    for name in ("until_control", "look"):
        if getattr(config.repair, name):
            raise InputError(f"repair.{name}: not for a masked language model, whose spans are asked for in other rows")
    if config.audit.harness.tasks:
        raise InputError("audit.harness.tasks: not for a masked language model, which does not go on with a text")
    if config.repair.objectives.unlikelihood:
        raise InputError(
            "repair.objectives.unlikelihood: not for a masked language model, whose sensitive tokens are never hidden in training; "
            "set it to 0, or `preset: paper`"
        )


def _check_base(source: Source) -> None:
    """Raises InputError for a model before the sensitive training that cannot be asked what the audit compares with."""
    try:
        base = source.before_training()
        if base is not None:
            base.empty()
    except InputError:
        raise InputError(
            "model.base: its config.json and weights are no checkpoint that transformers reads; the audit compares with it unless `use` is "
            "left out of audit.metrics"
        ) from None


def _check_other(name: str, folder: Path, source: Source, packs_none: bool) -> None:
    """Raises InputError for a model to compare with that cannot be loaded, or that reads other tokens than the source does."""
    try:
        checkpoint, other_config = Checkpoint(folder, source.settings.allow_pickle), read_model_config(folder)
        check_complete(build_empty(other_config, source.dtype, checkpoint), checkpoint)
        other = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (InputError, OSError, ValueError):
        raise InputError(f"{name}: {folder} is no checkpoint with a tokenizer that transformers reads") from None
    if other.get_vocab() != source.tokenizer.get_vocab():
        raise InputError(f"{name}: {folder} has another tokenizer than model.path; expected the same")
    if not packs_none and alone(other_config):
        raise InputError(f"{name}: {folder} sees other documents in its row; set corpus.packing: none")


def _count_trained(config: Config, source: Source, model: PreTrainedModel) -> int:
    """Of the model's parameters, how many repair changes. Freezes the others. Raises InputError when there is none."""
    trunk = None if config.repair.trainable == "all" else FrozenLayers(model, config.repair.trainable.last)
    if trunk is not None:
        trunk.freeze(model)
    recompute_trained(model, trunk, config.repair.activation_checkpointing)
    source.freeze(model)
    trained: int = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise InputError("repair.trainable: the adapter changes none of the last layers; leave it out")
    return trained


def _count_reset(units: list[Units], settings: EraseSettings) -> int:
    return sum(share(settings.fraction, group.count) for group in units)
