"""A LoRA adapter on the model it was trained on, of which it alone is sanitised.

peft puts its layers into the empty model, so that ranks, scaling and dropout are what it makes of the adapter's settings. From there on the
adapter's tensors are parameters like any other, and a rank owns flat ranges of them. `base_model.model.X.lora_A.weight` of its file is
the parameter `X.lora_A.default.weight`; the base's `X.weight` is `X.base_layer.weight` where there is a layer around it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn, promote_types
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from sani_dist.engine.export import TOKENIZER, Form
from sani_dist.engine.layout import Layout, Piece
from sani_dist.engine.safetensors_files import Checkpoint, read_metadata
from sani_dist.engine.shards import LiveShard
from sani_dist.errors import InputError
from sani_dist.files import file_sha256

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, NAME = "base_model.model.", "default"  # of peft's names: in the file, of the adapter in the model


class Structure(TypedDict, total=False):
    """Settings of plain LoRA. Any other has to be as peft has it when nobody sets it."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    fan_in_fan_out: bool
    target_modules: str | list[str] | None
    exclude_modules: str | list[str] | None
    layers_to_transform: int | list[int] | None
    layers_pattern: str | list[str] | None
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


DESCRIPTION = (
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "eva_config",
)  # fmt: skip
# How an adapter may have begun: other ways change the base too.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
MERGE = "merge it: sani-dist merge BASE ADAPTER"


class Adapter:
    """The folder of an adapter: its settings, and where its tensors lie."""

    def __init__(self, folder: Path) -> None:
        """Read the settings and the header of the weights. Raises InputError for anything but a LoRA adapter as peft saves it."""
        for name in (SETTINGS, WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"model.adapter: {folder} has no {name}; expected a LoRA adapter of peft")
        self.folder = folder
        self.checkpoint = Checkpoint(folder, names=[WEIGHTS])
        self._structure = _read_settings(folder)

    @property
    def form(self) -> Form:
        """That of a folder which peft loads: one file, whatever its size."""
        metadata = read_metadata(self.folder / WEIGHTS)
        return Form(WEIGHTS.removesuffix(".safetensors"), sys.maxsize, metadata, (SETTINGS, *TOKENIZER))

    def sha256(self, base: str) -> str:
        """Of the adapter and its base, whose hash is `base`: what they compute together depends on both, and on the settings."""
        digest = hashlib.sha256(bytes.fromhex(base))
        for name in (SETTINGS, WEIGHTS):
            digest.update(bytes.fromhex(file_sha256(self.folder / name)))
        return digest.hexdigest()

    def join(self, model: PreTrainedModel, base: Layout | None) -> Layout:
        """Put the adapter into an empty model, whose own parameters lie where `base` says; returns where all lie now.

        Raises InputError when it is not an adapter of that model.
        """
        if base is None:
            raise InputError(f"model.adapter: model.path is stored so that its weights have to be computed; {MERGE}")
        before = {id(parameter): name for name, parameter in model.named_parameters()}
        self.inject(model)
        own = self.layout(model)
        shapes, pieces = dict(own.shapes), dict(own.pieces)
        for name, parameter in model.named_parameters():
            if was := before.get(id(parameter)):
                shapes[name], pieces[name] = base.shapes[was], base.pieces[was]
        return Layout(shapes, pieces, base.buffers)

    def inject(self, model: PreTrainedModel) -> None:
        """Put peft's layers into an empty model, empty too. Raises InputError when the tensors of the file are not what they hold."""
        from peft import LoraConfig, inject_adapter_in_model

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            # The values that an initialiser would draw are in the file.
            settings = LoraConfig(init_lora_weights=False, **self._structure)
            inject_adapter_in_model(settings, model, NAME, low_cpu_mem_usage=True)
        except (ValueError, re.error):
            raise InputError(
                f"model.adapter: {self.folder} changes modules that model.path does not have, or that are no projections; expected an "
                "adapter of that model"
            ) from None
        # peft freezes the base. Here `freeze_base` does, for training: attacks ask for the base's slopes.
        for parameter in trained:
            parameter.requires_grad_(True)
        self._check(model)

    def layout(self, model: PreTrainedModel) -> Layout:
        """Where the adapter's parameters lie, and nothing else."""
        names = {_stored_name(name): name for name, _ in model.named_parameters() if is_of_adapter(name)}
        tensors = {names[stored]: tensor for stored, tensor in self.checkpoint.tensors.items()}
        return Layout(
            {name: tensor.shape for name, tensor in tensors.items()},
            {name: (Piece(tensor, 0),) for name, tensor in tensors.items()},
        )

    def stored(self, model: PreTrainedModel, shards: Iterable[LiveShard]) -> Iterator[LiveShard]:
        """The adapter's among a model's shards, as shards of its file, in its precision, or the model's where that holds more."""
        own = self.layout(model)
        for live in own.stored(live for live in shards if live.shard.name in own.pieces):
            dtype = promote_types(self.checkpoint.tensors[live.shard.name].dtype, live.shard.dtype)
            yield replace(live, shard=replace(live.shard, dtype=dtype))

    def _check(self, model: PreTrainedModel) -> None:
        layers = lora_layers(model)
        if model.get_output_embeddings() in layers.values() or not all(
            isinstance(inside, nn.Linear | Conv1D) for inside in layers
        ):
            raise InputError(f"model.adapter: {self.folder} changes more than projections of the blocks; {MERGE}")
        shapes = {_stored_name(n): tuple(p.shape) for n, p in model.named_parameters() if is_of_adapter(n)}
        for name in sorted(shapes.keys() - self.checkpoint.tensors.keys()):
            raise InputError(f"model.adapter: {self.folder} has no tensor {name}; expected an adapter of model.path")
        for name, tensor in self.checkpoint.tensors.items():
            if name not in shapes:
                raise InputError(
                    f"model.adapter: {self.folder} has {name}, which is not of a LoRA of model.path; {MERGE}"
                )
            if tensor.shape != shapes[name]:
                raise InputError(
                    f"model.adapter: {self.folder} has {name} of shape {list(tensor.shape)}; with model.path it would be "
                    f"{list(shapes[name])}: expected an adapter of that model"
                )


def lora_layers(model: nn.Module) -> dict[nn.Module, Any]:
    """The modules that an adapter changes -> peft's layer around each. None in a model without an adapter."""
    return {m.base_layer: m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")}  # type: ignore[misc]


def add_lora(model: PreTrainedModel, rank: int, blocks: Iterable[nn.Module]) -> None:
    """Put a LoRA, whose parameters are on the meta device, around every projection of the blocks. Raises InputError without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("a LoRA needs peft; pip install -c constraints.txt -e '.[lora]'") from error
    projections = {m for block in blocks for m in block.modules() if isinstance(m, nn.Linear | Conv1D)}
    transposed = any(isinstance(m, Conv1D) for m in projections)
    named = [name for name, m in model.named_modules() if m in projections]
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=named, fan_in_fan_out=transposed, init_lora_weights=False
    )
    inject_adapter_in_model(settings, model, NAME, low_cpu_mem_usage=True)


def freeze_base(model: nn.Module) -> None:
    """Leave gradients to the adapter alone."""
    for name, parameter in model.named_parameters():
        if not is_of_adapter(name):
            parameter.requires_grad_(False)


def tokenizer_folder(base: Path, adapter: Path) -> Path:
    """The folder of the tokenizer: the adapter's if there is one in it, else the base's."""
    own = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return adapter if own else base


def is_of_adapter(name: str) -> bool:
    """Whether a parameter is one of the adapter's, by its name in the model."""
    return re.search(rf"\.lora_[AB]\.{NAME}\.weight$", name) is not None


def _stored_name(name: str) -> str:
    return PREFIX + name.removesuffix(f".{NAME}.weight") + ".weight"


def _read_settings(folder: Path) -> dict[str, Any]:
    """Those that say what peft's layers are. Raises InputError when others say that they are more than LoRA."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("model.adapter: peft is missing; pip install -c constraints.txt -e '.[lora]'") from None
    damaged = f"model.adapter: {folder / SETTINGS} is not that of an adapter; save it again"
    try:
        document = dict(json.loads((folder / SETTINGS).read_text()))
    except (ValueError, TypeError):
        raise InputError(damaged) from None
    if document.get("peft_type") != "LORA":
        raise InputError(f"model.adapter: {folder} is of another kind than LoRA; {MERGE}")
    structure = {name: document[name] for name in Structure.__annotations__ if name in document}
    try:
        TypeAdapter(Structure).validate_python(structure, strict=True)
    except ValidationError:
        raise InputError(damaged) from None
    usual = LoraConfig().to_dict()
    more = [
        n for n, value in document.items() if n not in (*structure, *DESCRIPTION) and value and value != usual.get(n)
    ]
    if document.get("init_lora_weights", True) not in BEGINNINGS:
        more.append("init_lora_weights")
    if more:
        raise InputError(f"model.adapter: {folder} is more than plain LoRA ({', '.join(sorted(more))}); {MERGE}")
    return structure
