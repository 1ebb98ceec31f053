"""What a run starts from: a model, or a LoRA adapter on one. Nothing outside of here and `adapter.py` asks which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sani_dist.config import ModelSettings
from sani_dist.engine import distributed
from sani_dist.engine.adapter import Adapter, freeze_base, tokenizer_folder
from sani_dist.engine.export import MODEL, Form, export
from sani_dist.engine.layout import Layout, base_layout, check_complete, exported, find_layout, unread
from sani_dist.engine.proof import Proof, alone, prove
from sani_dist.engine.safetensors_files import Checkpoint, read_range
from sani_dist.engine.shards import LiveShard, Shard, local_shards, partition
from sani_dist.engine.stored_tensor import StoredTensor
from sani_dist.engine.zero3 import build_empty, is_masked, load_sharded, read_model_config
from sani_dist.errors import InputError


class Source:
    """A model: its settings, tokenizer and stored tensors, read when first asked for.

    folder: of what is sanitised. What differs for an adapter is in `_AdapterSource`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.folder = settings.source
        self.dtype: torch.dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.dtype]

    # What it is

    @cached_property
    def config(self) -> Any:
        """The transformers config. Raises InputError with one line when there is none or it is broken."""
        return read_model_config(self.settings.path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises InputError when transformers reads none from the folder."""
        folder = self._tokenizer_folder
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # type: ignore[no-any-return, no-untyped-call]
        except (OSError, ValueError):
            raise InputError(f"model.path: {folder} has no tokenizer that transformers reads") from None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The stored tensors of the model, an adapter's base."""
        return Checkpoint(self.settings.path, self.settings.allow_pickle)

    @property
    def masked(self) -> bool:
        """Whether the model predicts hidden tokens, not the next one."""
        return is_masked(self.config)

    @property
    def mask_token(self) -> int:
        """The token that hides others; of a masked model, whose tokenizer preflight has checked."""
        assert isinstance(self.tokenizer.mask_token_id, int)
        return self.tokenizer.mask_token_id

    @cached_property
    def proof(self) -> Proof:
        """What a small model of the same config shows. Raises InputError when it computes something else than plain transformers."""
        return prove(self.config)

    @property
    def alone(self) -> bool:
        """Whether each document needs a row of its own: the model sees others in its row, or nobody could show that it does not."""
        return alone(self.config)

    def hashes(self) -> dict[str, str]:
        """Of the weights that a run starts from, and of those before the sensitive training, where there are any."""
        base = self._base
        return {"model_sha256": self.checkpoint.sha256(), **({} if base is None else {"base_sha256": base.sha256()})}

    def elsewhere(self, folder: Path) -> Source:
        """What an export of this source is in `folder`."""
        return Source(self.settings.model_copy(update={"path": folder}))

    def other(self, folder: Path) -> Source:
        """A whole model in `folder`, in the same precision: one to compare with."""
        return Source(self.settings.model_copy(update={"path": folder, "adapter": None}))

    def before_training(self) -> Source | None:
        """The model before the sensitive training, where one is given that reads the same tokens."""
        base = self.settings.base
        if base is None or not (base / "config.json").is_file():
            return None
        source = self.other(base)
        sizes = {config.get_text_config().vocab_size for config in (self.config, source.config)}
        return source if len(sizes) == 1 else None

    # As a model

    def empty(self) -> tuple[PreTrainedModel, Layout | None]:
        """The model without weights, and where its parameters lie: None where transformers has to compute them.

        Raises InputError when parameters are missing in the files.
        """
        model = build_empty(self.config, self.dtype, self.checkpoint)
        check_complete(model, self.checkpoint)
        return model, find_layout(model, self.checkpoint)

    def unread(self, model: PreTrainedModel) -> list[str]:
        """Names of stored tensors that are no part of an empty model: an export after repair lacks them."""
        return list(unread(model, self.checkpoint))

    def load(self, ds_config: dict[str, Any]) -> PreTrainedModel:
        """The model under ZeRO-3, each rank with its shards. All ranks call it."""
        return load_sharded(self.settings.path, ds_config, self.dtype, self.settings.allow_pickle)

    def base_layout(self, model: PreTrainedModel, names: set[str]) -> Layout | None:
        """Where parameters lie in the checkpoint before the sensitive training; None where none is given. Raises InputError when one of
        `names` is not there."""
        return None if self._base is None else base_layout(model, self._base, names)

    def freeze(self, model: PreTrainedModel) -> None:
        """Take gradients from what repair may not change: nothing of a model."""

    @property
    def erased_to(self) -> str | None:
        """What erased units become whatever the plan says; None where the plan says it."""
        return None

    # As files

    @property
    def exported(self) -> Mapping[str, StoredTensor]:
        """The tensors that an export has."""
        return self.checkpoint.tensors

    def stored_layout(self) -> tuple[PreTrainedModel, Layout]:
        """The model without weights, and where those of its parameters lie that an export has. Raises InputError when stored tensors
        are not parameters."""
        model = build_empty(self.config, self.dtype, self.checkpoint)
        layout = find_layout(model, self.checkpoint)
        if layout is None:
            raise InputError(
                "erase alone needs a checkpoint whose tensors are the model's parameters; run repair as well"
            )
        return model, layout

    def stored_shards(self) -> Iterator[LiveShard]:
        """This rank's range of every tensor that an export has, read from the files, in its own dtype."""
        for tensor in self.exported.values():
            start, stop = partition(tensor.numel, distributed.world_size(), distributed.rank())
            values = torch.empty(stop - start, dtype=tensor.dtype)
            read_range(tensor, start, stop, values)
            yield LiveShard(Shard(tensor.name, tensor.shape, start, stop, tensor.dtype), values)

    def export_trained(self, model: PreTrainedModel, folder: Path) -> dict[str, str]:
        """Write a trained model, sharded, as a folder; all ranks call it. Returns file -> sha256."""
        return export(exported(model, self.checkpoint), self.folder, folder, dtype=self.dtype, form=self._form)

    def export_stored(self, shards: Iterable[LiveShard], folder: Path) -> dict[str, str]:
        """Write shards of stored tensors, in their own dtypes, as a folder; all ranks call it. Returns file -> sha256."""
        return export(shards, self.folder, folder, form=self._form)

    @property
    def _form(self) -> Form:
        return MODEL

    @property
    def _tokenizer_folder(self) -> Path:
        return self.settings.path

    @cached_property
    def _base(self) -> Checkpoint | None:
        base = self.settings.base
        return None if base is None else Checkpoint(base, self.settings.allow_pickle)


class _AdapterSource(Source):
    """A LoRA adapter on a model, of which it alone is sanitised and exported."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        assert settings.adapter is not None
        self._adapter = Adapter(settings.adapter)

    def hashes(self) -> dict[str, str]:
        """The base is a part of what the adapter computes, and is the model before the sensitive training."""
        base = self.checkpoint.sha256()
        return {"model_sha256": self._adapter.sha256(base), "base_sha256": base}

    @property
    def before(self) -> Source | None:
        return self.other(self.settings.path)

    def elsewhere(self, folder: Path) -> Source:
        return _AdapterSource(self.settings.model_copy(update={"adapter": folder}))

    def before_training(self) -> Source | None:
        return self.other(self.settings.path)

    def empty(self) -> tuple[PreTrainedModel, Layout | None]:
        model, layout = super().empty()
        return model, self._adapter.join(model, layout)

    def load(self, ds_config: dict[str, Any]) -> PreTrainedModel:
        return load_sharded(self.settings.path, ds_config, self.dtype, self.settings.allow_pickle, self._adapter)

    def freeze(self, model: PreTrainedModel) -> None:
        freeze_base(model)

    @property
    def erased_to(self) -> str | None:
        """What is left of a unit without its part in the adapter is the base's."""
        return "zero"

    @property
    def exported(self) -> Mapping[str, StoredTensor]:
        return self._adapter.checkpoint.tensors

    def stored_layout(self) -> tuple[PreTrainedModel, Layout]:
        model = build_empty(self.config, self.dtype, self.checkpoint)
        self._adapter.inject(model)
        return model, self._adapter.layout(model)

    def export_trained(self, model: PreTrainedModel, folder: Path) -> dict[str, str]:
        return self.export_stored(self._adapter.stored(model, local_shards(model)), folder)

    @property
    def _form(self) -> Form:
        return self._adapter.form

    @property
    def _tokenizer_folder(self) -> Path:
        return tokenizer_folder(self.settings.path, self._adapter.folder)


def open_source(settings: ModelSettings) -> Source:
    """Raises InputError for an adapter that is none, or of another kind than LoRA."""
    return Source(settings) if settings.adapter is None else _AdapterSource(settings)
