"""What a rank carries from stage to stage: the run, its text, where progress goes, and the model on its way."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event
from types import FrameType, TracebackType
from typing import Any

from transformers import PreTrainedModel

from sani_dist.audit.spans import Corpus
from sani_dist.corpus import PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.checkpoint import checkpoint_path, load_newest
from sani_dist.engine.proof import prove_loaded
from sani_dist.engine.shards import LiveShard, local_shards
from sani_dist.engine.source import Source, open_source
from sani_dist.engine.zero3 import Engine, read_ds_config
from sani_dist.erase import Plan, apply, begin_again
from sani_dist.erase.structure import last_units, parameter_names
from sani_dist.errors import InputError, RunError
from sani_dist.metrics import Metrics
from sani_dist.run import Run, read_json
from sani_dist.tracking import Curves

PLAN, CHECKPOINTS = "erase/plan.json", "repair/checkpoints"
# What a stage wrote: file -> its hash, or None where it has not been computed yet.
Outputs = Mapping[Path, str | None]


class Rank:
    """One rank of a run. first: whether it is rank 0, which alone writes what all have. in_steps: while repair takes steps, a signal
    ends them with a checkpoint; at any other time it ends the stage at once.

    The model goes one way, `original` -> `erased` -> `sanitised`, and is loaded when a stage first asks for it.
    """

    def __init__(self, run: Run, checkpoint_asked: Event) -> None:
        self.run, self.config, self.checkpoint_asked = run, run.config, checkpoint_asked
        self.first = distributed.rank() == 0
        self.metrics = Metrics(run.path("metrics.jsonl"), self.first)
        self.curves = Curves(run.path("logs"), self.first)
        self.source = open_source(run.config.model)
        self.corpus = Corpus(run.path("corpus"), run.path("tokens", "epoch-000"))
        self.stopping = self.in_steps = False
        self._engine: Engine | None = None
        self._state = "original"

    def __enter__(self) -> Rank:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.curves.close()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Handler of a signal."""
        self.stopping = True
        if not self.in_steps:
            raise KeyboardInterrupt

    def mark_done(self, stage: str, outputs: Outputs) -> None:
        """All ranks call it: none goes on before the stage counts as done."""
        if self.first:
            known = {path: sha for path, sha in outputs.items() if sha is not None}
            self.run.mark_done(stage, [path for path in outputs if path not in known], known)
        distributed.barrier()

    # The text

    def rows(self, split: str, text: int = 0) -> PackedRows | None:
        """Of a split, if there is one. text: 0 is the true one, others have surrogates."""
        path = self.run.path("tokens", f"epoch-{text:03d}", f"{split}.arrow")
        return PackedRows(path) if path.exists() else None

    def needed_rows(self, split: str, text: int = 0) -> PackedRows:
        """Raises InputError when the run has no such split."""
        rows = self.rows(split, text)
        if rows is None:
            raise InputError(f"the run has no {split} text")
        return rows

    def splits(self, names: Collection[str]) -> dict[str, PackedRows]:
        """Those of `names` that have rows."""
        return {split: rows for split in names if (rows := self.rows(split)) is not None and len(rows)}

    # The model

    @property
    def trains(self) -> bool:
        return "repair" in self.run.stages and self.config.repair.epochs > 0

    @cached_property
    def source_hashes(self) -> dict[str, str]:
        """As they were when the run began."""
        return read_json(self.run.path("source.json"))

    def load(self, source: Source) -> Engine:
        """Shards of a model, not yet wrapped."""
        ds_config = read_ds_config(self.config.cluster.ds_config, source.dtype)
        return Engine(source.load(ds_config), ds_config, source.alone)

    def original(self) -> Engine:
        """The source, as it came. Raises InputError when the ranks compute something else than plain transformers."""
        assert self._state == "original"
        if self._engine is None:
            self.metrics.progress("load", 0, 1, "model")
            self._engine = self.load(self.source)
            self._engine.for_inference()
            prove_loaded(self._engine)
            self.metrics.progress("load", 1, 1, "model")
        return self._engine

    def erased(self) -> Engine:
        """The source with the plan's units reset, in which only what repair may change has gradients."""
        engine = self.original()
        self.erase(engine.model, local_shards(engine.model))
        trainable = self.config.repair.trainable
        if self.trains and trainable != "all":
            engine.freeze_first_layers(trainable.last)
        if self.trains:
            self.source.freeze(engine.model)
        self._state = "erased"
        return engine

    def trained(self, engine: Engine) -> None:
        """Told by repair: the engine of `erased` is now what it is to be."""
        assert engine is self._engine
        self._state = "sanitised"

    def sanitised(self) -> Engine:
        """The model as it will be exported: erased, and trained if the run trains; from the newest checkpoint where this start of the
        run has not trained it."""
        if self._state != "sanitised":
            engine = self.erased()
            if self.trains:
                engine.for_training(self.config.repair)
                self._load_trained(engine)
            self.trained(engine)
        assert self._engine is not None
        return self._engine

    def _load_trained(self, engine: Engine) -> None:
        """Raises RunError when the newest checkpoint is not the one that repair ended with."""
        folder = self.run.path(CHECKPOINTS)
        state = load_newest(folder, engine, self.run.inputs_sha256("repair"))
        ended_with = distributed.from_rank_0(list(self.run.outputs("repair")) if self.first else [])
        if state is None or f"{CHECKPOINTS}/{checkpoint_path(folder, state.step).name}/state.json" not in ended_with:
            raise RunError(
                f"repair: its last checkpoint was damaged a moment ago; `sani-dist resume {self.run.folder}` trains the missing steps"
            )

    def erase(self, model: PreTrainedModel, shards: Iterable[LiveShard]) -> None:
        """Reset the units of the plan, or all there is, in shards of the model's parameters."""
        if "erase" not in self.run.stages:
            return
        plan = Plan.read(self.run.path(PLAN))
        if self.config.erase.begins_at_base:
            names = {name for name, _ in model.named_parameters()}
            begin_again(shards, plan.seed, self.source.base_layout(model, names))
        elif plan.units:
            units = last_units(model, self.config.erase.layers, self.config.erase.units)
            plan = replace(plan, reset=self.source.erased_to or plan.reset)
            base = self.source.base_layout(model, parameter_names(units)) if plan.reset == "base" else None
            apply(shards, units, plan, base)

    def release(self) -> None:
        """Let go of the model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def for_audit(engine: Engine) -> Engine:
    """Ready to run forward, whether it was in training or never wrapped."""
    if engine.ds is None:
        engine.for_inference()
    engine.module.eval()
    return engine


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_list(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found
