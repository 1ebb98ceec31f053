"""A causal language model sharded by DeepSpeed ZeRO-3: streamed in, run forward, wrapped for training.

Life of a model here: `load_sharded` -> `Engine.for_inference` (audit, attribution) -> shards edited -> `for_training`
(masters and moments start from the edited shards) -> `for_inference` is no longer needed: the trained module runs forward.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from sani_dist.config import RepairSettings
from sani_dist.engine import deepspeed_internals, distributed
from sani_dist.engine.adapter import Adapter, add_lora, freeze_base
from sani_dist.engine.attention import attend_by_document
from sani_dist.engine.blocks import blocks_of, body_of
from sani_dist.engine.buffers import read_buffers
from sani_dist.engine.frozen_layers import FrozenLayers, recompute_trained
from sani_dist.engine.head import Logits, VocabularyHead, logits_of
from sani_dist.engine.layout import find_layout, untie_what_differs
from sani_dist.engine.packed_attention import PackedAttention
from sani_dist.engine.rotary import rotate_by_document
from sani_dist.engine.safetensors_files import SINGLE, Checkpoint
from sani_dist.engine.shards import local_shards
from sani_dist.errors import InputError

# Beside the package in a checkout, inside it in a wheel.
_PACKAGE = Path(__file__).parents[1]
DEFAULT_DS_CONFIG = next(
    (p for p in (_PACKAGE / "ds_configs" / "zero3.json", _PACKAGE.parent / "ds_configs" / "zero3.json") if p.exists()),
    _PACKAGE / "ds_configs" / "zero3.json",
)
# Architectures whose head does not predict tokens.
OTHER_HEAD = re.compile(
    r"For(\w*(Classification|Answering|Regression|Retrieval|Scoring)|(Multiple|Next|Score|Value|Sentence)\w*)$|Reward|Classifier|DoubleHeads"
)
logger = logging.getLogger(__name__)
T = TypeVar("T")


def read_ds_config(path: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    """The DeepSpeed JSON of a run, with the precision of the run put in. Raises InputError when it is not ZeRO-3 JSON."""
    path = path or DEFAULT_DS_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cluster.ds_config: cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"cluster.ds_config: {path} is not JSON ({error})") from None
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        raise InputError(f"cluster.ds_config: {path} must have zero_optimization.stage 3")
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "optimizer",
        "scheduler",
    ):
        if key in config:
            raise InputError(
                f"cluster.ds_config: {path}: remove {key!r}; it follows from `repair` in the run's settings"
            )
    if zero.get("zero_quantized_weights") or zero.get("zero_quantized_nontrainable_weights"):
        raise InputError(f"cluster.ds_config: {path}: forward would see rounded weights, and the audit another model")
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        raise InputError(
            f"cluster.ds_config: {path}: shards have to be in memory to be edited; set offload_param.device to cpu"
        )
    # torch's fused AdamW on CPU tensors is as fast as DeepSpeed's, needs no compiler, and is the same with and without offload.
    config["zero_force_ds_cpu_optimizer"] = False
    config["bf16"] = {"enabled": dtype == torch.bfloat16}
    # DeepSpeed would add up micro-batches in the precision of the model: in bfloat16, whose 8 bits the sum of a few dozen outgrows.
    config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    config["train_micro_batch_size_per_gpu"] = 1
    config.setdefault("steps_per_print", 10**9)
    return config


def is_masked(config: Any) -> bool:
    """Whether a model predicts hidden tokens, as BERT does, and not the next one."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def auto_class(config: Any) -> Any:
    return AutoModelForMaskedLM if is_masked(config) else AutoModelForCausalLM


def build_empty(config: Any, dtype: torch.dtype, checkpoint: Checkpoint | None = None) -> PreTrainedModel:
    """The model of a transformers config with parameters on the meta device; buffers, such as rotary tables, are real.

    checkpoint: that it will be filled from. Parameters are tied where `from_pretrained` ties them: not where both are stored and differ.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError:
        raise InputError(
            f"model.path: {config.model_type} is no causal or masked language model that transformers builds"
        ) from None
    model.tie_weights()
    if checkpoint is not None:
        untie_what_differs(model, checkpoint)
    return model


def load_sharded(
    folder: Path, ds_config: dict[str, Any], dtype: torch.dtype, allow_pickle: bool = False, adapter: Adapter | None = None
) -> PreTrainedModel:  # fmt: skip
    """A model under ZeRO-3 whose shards were read from the byte ranges of the checkpoint that this rank owns; `adapter`: with that in it.

    Peak memory of a rank is its shards plus one buffer. Where parameters have to be computed from the stored tensors, transformers
    does it, whole on each rank, and a log line says so.
    """
    checkpoint = Checkpoint(folder, allow_pickle)
    config = read_model_config(folder)
    model = build_empty(config, dtype, checkpoint)
    layout = find_layout(model, checkpoint)
    if adapter is not None:
        layout = adapter.join(model, layout)
    if layout is None:
        logger.warning(
            "the stored tensors need transformers' weight conversion: loading through transformers, unstreamed"
        )
        return _load_through_transformers(folder, ds_config, dtype)
    _check_hpz(ds_config)
    _partition_empty(model, deepspeed_internals.converter(ds_config, dtype), dtype)
    for live in local_shards(model):
        layout.read_into(live.shard.name, live.shard.start, live.shard.stop, live.values)
    read_buffers(model, layout.buffers, dtype)
    model.to(distributed.device())  # buffers; parameters are empty outside a forward
    model.eval()
    return model


def _check_hpz(ds_config: dict[str, Any]) -> None:
    group_size = ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if group_size < distributed.world_size() and distributed.world_size() % group_size:
        raise InputError(
            f"cluster.ds_config: zero_hpz_partition_size {group_size} does not divide {distributed.world_size()} workers"
        )


def _partition_empty(model: PreTrainedModel, converter: Any, dtype: torch.dtype) -> None:
    """Turn meta parameters into ZeRO-3 parameters whose shards are allocated and not yet filled; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, meta in module._parameters.items():
            if meta is None or not meta.is_meta:
                continue
            if meta not in made:
                made[meta] = deepspeed_internals.partitioned(meta, converter, dtype)
            module._parameters[name] = made[meta]


def read_model_config(folder: Path) -> Any:
    """The transformers config of a folder. Raises InputError with one line when there is none or it is broken."""
    if folder.suffix == ".gguf" or (any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))):
        raise InputError(
            f"model.path: {folder} has quantised weights (GGUF); expected plain ones: load it with from_pretrained(..., gguf_file=...), "
            "and save it with save_pretrained"
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"model.path: {folder} is an adapter; merge it first: sani-dist merge BASE {folder} --out merged; or give its base as "
            "model.path and the adapter as model.adapter"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path: {folder} has no config.json; expected a Hugging Face checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        asks = "trust_remote_code" in str(error)
        reason = "it asks for code of its own, which is never run" if asks else type(error).__name__
        raise InputError(f"model.path: config.json of {folder} is not one that transformers reads ({reason})") from None
    if other := [name for name in config.architectures or () if OTHER_HEAD.search(name)]:
        raise InputError(
            f"model.path: {folder} is a {other[0]}, not a language model: its head would be lost; give the language model it was made from"
        )
    if getattr(config, "transformers_weights", None) is not None:
        raise InputError(
            f"model.path: config.json of {folder} names its weight file itself (transformers_weights); rename the file to {SINGLE} and "
            "take the entry out"
        )
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else type(quantisation).__name__
        raise InputError(
            f"model.path: {folder} has quantised weights ({method}); expected plain ones: dequantise the model first, or take the one "
            "it was made from"
        )
    return config


def _load_through_transformers(folder: Path, ds_config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(ds_config)  # from_pretrained partitions while this object lives
    auto = auto_class(read_model_config(folder))
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)
    del keep_alive
    model.eval()
    return model


class CausalModel(nn.Module):
    """Body and head of a causal language model: one forward that ends in any function of (hidden, weight, bias, softcap)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        # Some say of themselves that they are their own body.
        self.body = model.base_model if model.base_model is not model else body_of(model)
        self.head = VocabularyHead(model, logits_of(model))
        self.attention = PackedAttention(model, blocks_of(model))
        rotate_by_document(model)
        self.visible: torch.Tensor | None = None
        self.trunk: FrozenLayers | None = None

    def forward(self, inputs: torch.Tensor, position_ids: torch.Tensor | None, compute: Callable[..., T]) -> T:
        """inputs: token ids [rows, tokens], or what enters the layers above the trunk [rows, tokens, hidden_size].

        position_ids: [rows, tokens]. Positions that restart mark document boundaries for attention. None: each row is one text, which
        the body gets as in plain transformers.
        """
        given: dict[str, Any] = {"use_cache": False}
        if position_ids is not None:
            given |= self.attention.arguments(position_ids, self.visible, self.head.weight.dtype)
            given["position_ids"] = position_ids
        if inputs.is_floating_point():
            assert self.trunk is not None
            with self.trunk.replaced(inputs):
                output = self.body(inputs_embeds=inputs, **given)
        else:
            output = self.body(input_ids=inputs, **given)
        hidden = output.last_hidden_state
        result: T = self.head(hidden.reshape(-1, hidden.shape[-1]), compute)
        return result

    @contextmanager
    def seeing(self, visible: torch.Tensor) -> Iterator[None]:
        """While it lasts, tokens see those that `visible` says, bool [rows, tokens, tokens], not all before them in their document."""
        self.visible = visible
        try:
            yield
        finally:
            self.visible = None


class MaskedModel(nn.Module):
    """A masked language model with the forward of `CausalModel`. Rows hold one document each, whose positions count from 0.

    Its head is more than a projection: all of it but that is run, for which the projection inside lets hidden states through.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        check_head(model)
        rotate_by_document(model)
        self.body = model
        self.head = VocabularyHead(model, Logits())
        model.get_output_embeddings().forward = _unchanged

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, compute: Callable[..., T]) -> T:
        """input_ids, position_ids: [rows, tokens]. What is not in its place by its position is padding."""
        there = position_ids == torch.arange(position_ids.shape[1], device=position_ids.device)
        hidden = self.body(input_ids=input_ids, attention_mask=there.long()).logits
        result: T = self.head(hidden.reshape(-1, hidden.shape[-1]), compute)
        return result


def check_head(model: PreTrainedModel) -> None:
    """Raises InputError when the module that projects onto the vocabulary is not one of its own (DeBERTa with `legacy: false`)."""
    projection: Any = model.get_output_embeddings()
    rows, _ = getattr(projection.weight, "ds_shape", projection.weight.shape)
    if rows != model.config.vocab_size:
        raise InputError(f"model.path: {type(model).__name__} has no module that projects onto the vocabulary alone")


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


class Engine:
    """A sharded model and the DeepSpeed engine around it. alone: whether documents have to be run one to a row (`proof.alone`);
    None: nobody has asked, and the mask of the first packed row is looked at instead."""

    def __init__(self, model: PreTrainedModel, ds_config: dict[str, Any], alone: bool | None = None) -> None:
        attend_by_document(model)
        self.model = model
        self.masked = is_masked(model.config)
        self.module: CausalModel | MaskedModel = MaskedModel(model) if self.masked else CausalModel(model)
        if isinstance(self.module, CausalModel) and alone is False:
            self.module.attention.checked = True
        self.ds_config, self.alone = ds_config, bool(alone)
        self.device = distributed.device()
        self.ds: Any = None
        self.accumulation = 1

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, compute: Callable[..., T]) -> T:
        """Run the sharded module, outside of training. All ranks call it equally often: gathering is a collective."""
        result: T = self.module(input_ids.to(self.device), position_ids.to(self.device), compute)
        return result

    def for_inference(self) -> None:
        """Install ZeRO-3's hooks without an optimizer; forward and `torch.autograd.grad` to activations work."""
        import deepspeed

        if self.ds is None:
            self.ds, *_ = deepspeed.initialize(model=self.module, config=self.ds_config)
            distributed.limit_waiting()
        self.module.eval()

    @contextmanager
    def frozen_layers_alone(self) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """A function of (input_ids, position_ids) that gives what enters the trained layers, by a forward of the layers below."""
        assert isinstance(self.module, CausalModel)
        assert self.module.trunk is not None
        self.for_inference()
        with self.module.trunk.recorded() as found:

            def run(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
                self.forward(input_ids, position_ids, lambda *_: None)
                return found.pop()

            yield run

    def freeze_first_layers(self, trained: int) -> None:
        """Only the last `trained` layers are trained from here on. Raises InputError when the model has no more than that."""
        self.module.trunk = FrozenLayers(self.model, trained)
        self.module.trunk.freeze(self.model)

    def add_lora(self, rank: int) -> None:
        """Put a LoRA of `rank` around every projection of the blocks, with shards that are not yet filled. Not yet wrapped, and no adapter
        in it. Raises InputError without peft."""
        dtype = self.module.head.weight.dtype
        add_lora(self.model, rank, blocks_of(self.model))
        _partition_empty(self.model, deepspeed_internals.converter(self.ds_config, dtype), dtype)

    def freeze_base(self) -> None:
        """Only the adapter is trained from here on."""
        freeze_base(self.model)

    def for_training(self, settings: RepairSettings) -> None:
        """Build masters and moments from the shards as they are now. Gradient accumulation follows from `batch_rows`.

        Raises InputError when the settings ask for activation checkpointing that the model has not.
        """
        import deepspeed

        self.close()
        trunk = self.module.trunk if isinstance(self.module, CausalModel) else None
        recompute_trained(self.model, trunk, settings.activation_checkpointing)
        self.accumulation = -(-settings.batch_rows // (settings.micro_rows * distributed.world_size()))
        config = dict(self.ds_config)
        config["train_micro_batch_size_per_gpu"] = settings.micro_rows
        config["gradient_accumulation_steps"] = self.accumulation
        config["gradient_clipping"] = settings.clip
        self.ds, *_ = deepspeed.initialize(model=self.module, optimizer=self._optimizer(settings), config=config)
        distributed.limit_waiting()
        self.module.train()

    def _optimizer(self, settings: RepairSettings) -> torch.optim.Optimizer:
        arguments: dict[str, Any] = {
            "lr": settings.learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay
        }  # fmt: skip
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, fused=True, **arguments)

    def close(self) -> None:
        """Take DeepSpeed off the model again: hooks, masters, moments and gradients."""
        if self.ds is None:
            return
        deepspeed_internals.take_off(self.ds, self.module)
        self.ds = None
        deepspeed_internals.collect()
