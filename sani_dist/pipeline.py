"""The stages of a run in order: prepare -> audit before -> erase -> repair -> audit after -> export -> (attack ->) report.

`prepare` runs before any rank starts, so that bad input never costs a cluster. `work` is what each rank does
with the rest. Weights on the way are never stored but in checkpoints: erased weights are the source and a plan, so a run that is resumed
loads the source, applies the plan, and goes on.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import pandas as pd
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sani_dist.attack.result import ATTACKED, GOLD, Result
from sani_dist.attack.scene import Scene
from sani_dist.attack.suite import Task, attack
from sani_dist.audit.control import Standing, standing
from sani_dist.audit.harness import check_tasks
from sani_dist.audit.losses import document_losses
from sani_dist.audit.masked import audit_masked
from sani_dist.audit.measure import UNSEEN, audit, reference_scores
from sani_dist.audit.scores import TokenScores, score
from sani_dist.audit.spans import Corpus
from sani_dist.config import Config, EraseSettings, ModelSettings
from sani_dist.corpus import PackedRows
from sani_dist.corpus import prepare as prepare_corpus
from sani_dist.corpus.kinds import KindRows
from sani_dist.corpus.masking import HiddenRows, Masking, every_token
from sani_dist.corpus.prepare import write_plain
from sani_dist.corpus.rows import LEARN, SENSITIVE, Rows
from sani_dist.corpus.span import SPLITS
from sani_dist.corpus.spread import Spread
from sani_dist.engine import distributed
from sani_dist.engine.adapter import Adapter, freeze_base, tokenizer_folder
from sani_dist.engine.checkpoint import State, check_checkpoints, load_newest, save
from sani_dist.engine.export import MODEL, export
from sani_dist.engine.layout import Layout, base_layout, check_complete, find_layout
from sani_dist.engine.safetensors_files import Checkpoint, read_range
from sani_dist.engine.shards import LiveShard, Shard, local_shards, partition
from sani_dist.engine.trunk import Trunk, recompute_trained
from sani_dist.engine.zero3 import (
    Engine,
    build_empty,
    check_head,
    is_masked,
    load_sharded,
    read_ds_config,
    read_model_config,
)
from sani_dist.erase import Plan, apply, contests, select, share
from sani_dist.erase.structure import Units, last_units
from sani_dist.errors import InputError, RunError
from sani_dist.files import file_sha256
from sani_dist.metrics import Metrics
from sani_dist.repair import Predictions, Progress, places_of, predictions, states_below, train
from sani_dist.repair.kept import Place
from sani_dist.repair.schedule import Schedule
from sani_dist.report import write_report
from sani_dist.report.redact import redacted
from sani_dist.run import RELATED, STAGES, Run, build
from sani_dist.tracking import Curves, check_installed

AUDIT_SCHEMA = 1


# Before the ranks


def check(config: Config) -> dict[str, Any]:
    """Everything about model and settings that can be known without loading weights or text; what a dry run prints.

    Raises InputError with one line. Returns the counts that describe the run.
    """
    check_installed(config.tracking)
    check_tasks(config.audit.harness)
    dtype = torch_dtype(config)
    read_ds_config(config.cluster.ds_config, dtype)
    model_config = read_model_config(config.model.path)
    model = build_empty(model_config, dtype)
    checkpoint = Checkpoint(config.model.path, config.model.allow_pickle)
    check_complete(model, checkpoint)
    layout, adapter = find_layout(model, checkpoint), _adapter(config.model)
    if adapter is not None:
        layout = adapter.join(model, layout)
    units = last_units(model, config.erase.layers, config.erase.units) if config.erase.layers else []
    if config.erase.reset == "base" and config.model.base is not None:
        base_layout(model, Checkpoint(config.model.base, config.model.allow_pickle), _names(units))
    tokenizer = tokenizer_of(config)
    if is_masked(model_config):
        _check_masked(config, model, tokenizer)
    for name, other in (("audit.reference", config.audit.reference), ("attack.gold", config.attack.gold)):
        if other is not None:
            _check_other(name, other, config.model.allow_pickle, tokenizer, dtype)
    if config.repair.objectives.kl and config.repair.objectives.kl_top >= model.config.get_text_config().vocab_size:
        raise InputError("repair.objectives.kl_top: expected fewer tokens than the vocabulary has")
    trunk = None if config.repair.trainable == "all" else Trunk(model, config.repair.trainable.last)
    if trunk is not None:
        trunk.freeze(model)
    recompute_trained(model, trunk, config.repair.activation_checkpointing)
    parameters = exported = sum(p.numel() for p in model.parameters())
    if adapter is not None:
        freeze_base(model)
        exported = sum(tensor.numel for tensor in adapter.checkpoint.tensors.values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise InputError("repair.trainable: the adapter changes none of the last layers; leave it out")
    return {
        "architecture": type(model).__name__,
        "parameters": parameters,
        "layers": model.config.num_hidden_layers,
        "neurons_reset": _reset_count([group for group in units if group.kind == "mlp"], config.erase),
        "heads_reset": _reset_count([group for group in units if group.kind == "head"], config.erase),
        "streamed": layout is not None,
        "model_bytes": parameters * dtype.itemsize,
        # Two checkpoints of masters and two moments in fp32, and the exported model.
        "disk_bytes": exported * dtype.itemsize + (trained * 12 * 2 if config.repair.epochs else 0),
        # Weights and gradients in the run's precision, masters and two moments in fp32.
        "training_bytes": parameters * dtype.itemsize + trained * (dtype.itemsize + 12),
    }


def _check_masked(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    check_head(model)
    if tokenizer.mask_token_id is None:
        raise InputError("model.path: a masked language model, but its tokenizer has no mask token")
    if config.model.adapter is not None:
        raise InputError("model.adapter: not for a masked language model; merge it with peft, and sanitise the model")
    if config.repair.objectives.kl:
        raise InputError("repair.objectives.kl: not for a masked language model, whose rows differ from step to step")
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


def _reset_count(units: list[Units], settings: EraseSettings) -> int:
    found = (sum(units[number].count for number in numbers) for numbers in contests(units, settings))
    return sum(share(settings.fraction, count) for count in found)


def _check_other(
    name: str, folder: Path, allow_pickle: bool, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> None:
    """Raises InputError for a model to compare with that cannot be loaded, or that reads other tokens than the model does."""
    try:
        check_complete(build_empty(read_model_config(folder), dtype), Checkpoint(folder, allow_pickle))
        other = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    except (InputError, OSError, ValueError) as error:
        raise InputError(f"{name}: {folder} is no checkpoint with a tokenizer that transformers reads") from error
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(f"{name}: {folder} has another tokenizer than model.path; expected the same")


def prepare(run: Run, metrics: Metrics, spread: Spread = map) -> None:
    """Text -> spans -> tokens, and the hash of the model. `spread`: who works on the batches of documents."""
    source = build(run.path("source.json"), lambda path: _write_json(path, _hashes(run.config.model)))

    def report(done: int, total: int | None) -> None:
        metrics.progress("prepare", done, total or done + 1, "documents")

    prepare_corpus(
        run.config.corpus, tokenizer_of(run.config), run.folder, run.key, report, run.config.repair,
        alone=is_masked(read_model_config(run.config.model.path)), spread=spread,
    )  # fmt: skip
    outputs = [p for folder in ("corpus", "tokens") for p in sorted(run.path(folder).rglob("*")) if p.is_file()]
    run.mark_done("prepare", [source, *outputs])


def prepare_attack(run: Run) -> None:
    """Tokens of the text that only an attacker has. One process."""
    if run.config.attack.related is not None:
        path = run.path(RELATED)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        build(path, partial(write_plain, run.config.attack.related, run.config.corpus, tokenizer_of(run.config)))


def _hashes(model: ModelSettings) -> dict[str, str]:
    """Of the weights that a run starts from, and of those before the sensitive training: an adapter's base is a part of the former too."""
    weights = Checkpoint(model.path, model.allow_pickle).sha256()
    if model.adapter is not None:
        return {"model_sha256": Adapter(model.adapter).sha256(weights), "base_sha256": weights}
    base = {} if model.base is None else {"base_sha256": Checkpoint(model.base, model.allow_pickle).sha256()}
    return {"model_sha256": weights, **base}


def check_unchanged(run: Run) -> None:
    """Raises InputError when the model's files, or the settings of a run that has begun repair, are not those it started with."""
    if json.loads(run.path("source.json").read_text()) != _hashes(run.config.model):
        given = [f"model.{name}" for name in ("path", "adapter", "base") if getattr(run.config.model, name) is not None]
        raise InputError(
            f"{' or '.join(given)}: the model has changed since this run started; start a new run for the new model"
        )
    before = [stage for stage in STAGES[: STAGES.index("repair")] if stage in run.stages]
    if all(run.path("done", f"{stage}.json").exists() for stage in before):
        check_checkpoints(run.path("repair", "checkpoints"), run.inputs_sha256("repair"))


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    model = config.model
    folder = model.path if model.adapter is None else tokenizer_folder(model.path, model.adapter)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return, no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"model.path: {folder} has no tokenizer that transformers reads") from error


def _adapter(model: ModelSettings) -> Adapter | None:
    return None if model.adapter is None else Adapter(model.adapter)


def torch_dtype(config: Config) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.model.dtype]


# What one rank does


def work(run: Run, checkpoint_asked: Event) -> None:
    """All stages after `prepare` that are not done yet, on this rank of the process group.

    checkpoint_asked: set, on any rank, it makes repair write a checkpoint after its step, and go on.

    Raises RunError when SIGTERM or SIGINT ended it: in repair all ranks write a checkpoint first, any other stage ends at once.
    """
    try:
        _work(run, checkpoint_asked)
    except KeyboardInterrupt:
        raise RunError(f"stopped by a signal: `sani-dist resume {run.folder}` begins the stage again") from None
    finally:
        _on_stop_signals(signal.SIG_IGN)  # whoever started this rank sends what it got itself: twice for one Ctrl-C


def _work(run: Run, checkpoint_asked: Event) -> None:
    distributed.start(run.config.cluster.threads, run.config.cluster.timeout_seconds)
    try:
        worker = _Worker(run, checkpoint_asked)
        _on_stop_signals(worker.stop)
        try:
            worker.work()
        finally:
            worker.curves.close()
        if worker.first and run.pending() == ["report"]:
            write_report(run)
    finally:
        distributed.stop()


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C reaches every process of the terminal
        signal.signal(signum, handler)


class _Worker:
    """One rank's model and what it needs to carry it through the stages."""

    def __init__(self, run: Run, checkpoint_asked: Event) -> None:
        self.run, self.config, self.checkpoint_asked = run, run.config, checkpoint_asked
        self.first = distributed.rank() == 0
        self.metrics = Metrics(run.path("metrics.jsonl"), self.first)
        self.curves = Curves(run.path("logs"), self.config.tracking, self.first)
        self.checkpoint = Checkpoint(run.config.model.path, run.config.model.allow_pickle)
        self.adapter = _adapter(run.config.model)
        self.corpus = Corpus(run.path("corpus"), run.path("tokens", "epoch-000"))
        self.source = json.loads(run.path("source.json").read_text())
        self.stopping = self.in_steps = False

    def work(self) -> None:
        pending = [stage for stage in self._agreed_pending() if stage != "report"]
        if pending and pending != ["attack"]:
            self._sanitize(pending)
        if "attack" in pending:
            self._attack()

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Handler of a signal: steps of repair end with a checkpoint, nothing else has anything to keep."""
        self.stopping = True
        if not self.in_steps:
            raise KeyboardInterrupt

    def _sanitize(self, pending: list[str]) -> None:
        """The stages that are about one engine, from loading to export."""
        trains = "repair" in self.run.stages and self.config.repair.epochs > 0
        if set(pending) <= {"export", "attack"} and not trains:
            self._export_erased()
            return
        self.metrics.progress("load", 0, 1, "model")
        self.engine = self._load(self.config.model.source)
        self.metrics.progress("load", 1, 1, "model")
        if "audit-before" in pending:
            self._audit("before")
        if "erase" in pending:
            self._select()
        if trains and "repair" in pending and self.config.repair.objectives.kl:
            predictions(
                self.engine, self._taught_places, self.run.path("repair", "teacher"), self.config.repair.objectives.kl_top,
                self.run.inputs_sha256("repair"),
            )  # fmt: skip
        if set(pending) & {"repair", "audit-after", "export"}:
            self._apply(self.engine.model, local_shards(self.engine.model))
        if trains and set(pending) & {"repair", "audit-after", "export"}:
            self._repair("repair" in pending)
        if "repair" in pending and not trains:
            self._done("repair", [])
        if "audit-after" in pending:
            self._audit("after")
        if "export" in pending:
            if trains:
                self._export_trained()
            else:
                self._export_erased()
        self.engine.close()

    def _load(self, folder: Path) -> Engine:
        """`folder`: of a model, or of the adapter before or after the run."""
        dtype, model, adapter = torch_dtype(self.config), self.config.model, None
        if model.adapter is not None and folder in (model.adapter, self.run.path("model")):
            folder, adapter = model.path, Adapter(folder)
        ds_config = read_ds_config(self.config.cluster.ds_config, dtype)
        return Engine(load_sharded(folder, ds_config, dtype, model.allow_pickle, adapter), ds_config)

    def _agreed_pending(self) -> list[str]:
        """Rank 0's view: files may appear on other hosts later."""
        return distributed.from_rank_0(self.run.pending() if self.first else [])

    def _done(self, stage: str, outputs: list[Path]) -> None:
        if self.first:
            self.run.mark_done(stage, outputs)
        distributed.barrier()

    def _rows(self, split: str, text: int = 0) -> PackedRows | None:
        """`text`: 0 is the true one, others have surrogates."""
        path = self.run.path("tokens", f"epoch-{text:03d}", f"{split}.arrow")
        return PackedRows(path) if path.exists() else None

    def _needed_rows(self, split: str, text: int = 0) -> PackedRows:
        rows = self._rows(split, text)
        if rows is None:
            raise InputError(f"the run has no {split} text")
        return rows

    # Audit

    def _audit(self, when: str) -> None:
        if self.engine.ds is None:
            self.engine.for_inference()
        self.engine.module.eval()
        splits = {
            s: r
            for s in ("repair", "control", "heldout", "general_test")
            if (r := self._rows(s)) is not None and len(r)
        }
        tokenizer, settings = tokenizer_of(self.config), self.config.audit

        def report(done: int, total: int) -> None:
            self.metrics.progress(f"audit-{when}", done, total, "rows")

        if self.engine.masked:
            found = audit_masked(self.engine, splits, self.corpus, _mask_token(tokenizer), settings, report)
        else:
            found = audit(self.engine, splits, self.corpus, tokenizer, settings, self._reference(splits), report)
        path, losses = self.run.path("audit", f"{when}.json"), self.run.path("audit", f"{when}-losses.parquet")
        if self.first:
            build(losses, found.losses.to_parquet)
            document = {
                "schema": AUDIT_SCHEMA,
                "model_sha256": self.source["model_sha256"] if when == "before" else None,
                "corpus_sha256": file_sha256(self.run.path("corpus", "spans.parquet")),
                "settings": redacted(self.config.audit.model_dump(mode="json")),
                "measurements": [asdict(m) for m in found.measurements],
            }
            build(path, lambda temporary: _write_json(temporary, document))
        self.curves.add_audit(when, found.measurements)
        self._done(f"audit-{when}", [path, losses])

    def _reference(self, splits: dict[str, PackedRows]) -> dict[str, TokenScores]:
        """Scores by `audit.reference`, whose weights are there only while it is asked."""
        settings = self.config.audit
        if settings.reference is None or "membership" not in settings.metrics:
            return {}
        engine = self._load(settings.reference)
        engine.for_inference()
        scores = reference_scores(engine, splits, settings)
        engine.close()
        return scores

    # Erase

    def _select(self) -> None:
        settings = self.config.erase
        sensitive: Rows = self._needed_rows("repair")
        ordinary: Sequence[Rows] = ()
        kinds: Sequence[str] = ()
        if settings.layers and settings.select != "random":
            sensitive, ordinary, kinds = self._compared()
            if self.engine.ds is None:
                self.engine.for_inference()
        plan = select(
            self.engine, sensitive, ordinary, settings, source_sha256=self.source["model_sha256"], kinds=kinds,
            report=lambda done, total: self.metrics.progress("erase", done, total, "rows"),
        )  # fmt: skip
        path = self.run.path("erase", "plan.json")
        if self.first:
            build(path, plan.write)
        self._done("erase", [path])

    def _compared(self) -> tuple[Rows, Sequence[Rows], Sequence[str]]:
        """What units are scored by: the sensitive text, the texts whose tokens must not suffer, and the kinds of the former."""
        repair, general = self._needed_rows("repair"), self._rows("general_train")
        texts: dict[str, list[PackedRows | None]] = {
            "general": [general], "ordinary": [repair], "both": [repair, general]
        }  # fmt: skip
        usual = [rows for rows in texts[self.config.erase.relative_to] if rows is not None and len(rows)] or [repair]
        spans = pd.read_parquet(self.run.path("tokens", "epoch-000", "token_spans.parquet"))
        by_kind = KindRows(repair, spans[spans["split"] == "repair"])
        if not self.engine.masked:
            return by_kind, usual, by_kind.kinds
        mask = _mask_token(tokenizer_of(self.config))
        sensitive = HiddenRows(by_kind, every_token(repair, SENSITIVE, parts=1), mask)
        return sensitive, [HiddenRows(rows, every_token(rows, LEARN), mask) for rows in usual], by_kind.kinds

    def _plan(self) -> Plan:
        return (
            Plan.read(self.run.path("erase", "plan.json"))
            if "erase" in self.run.stages
            else Plan("", 0, "random", "zero", ())
        )

    def _base(self, model: PreTrainedModel, units: list[Units]) -> Layout | None:
        if self.config.model.base is None or self.config.erase.reset != "base":
            return None
        base = Checkpoint(self.config.model.base, self.config.model.allow_pickle)
        return base_layout(model, base, _names(units))

    def _apply(self, model: PreTrainedModel, shards: Iterable[LiveShard]) -> None:
        """Reset the units of the plan in shards of the model's parameters."""
        plan = self._plan()
        if plan.units:
            units = last_units(model, self.config.erase.layers, self.config.erase.units)
            # What is left of a unit without its part in the adapter is the base's.
            plan = plan if self.adapter is None else replace(plan, reset="zero")
            apply(shards, units, plan, self._base(model, units))

    # Repair

    def _repair(self, pending: bool) -> None:
        """Train, or load what was trained."""
        settings, folder = self.config.repair, self.run.path("repair", "checkpoints")
        inputs, trunk = self.run.inputs_sha256("repair"), self.run.path("repair", "trunk")
        if settings.trainable != "all":
            self.engine.freeze_trunk(settings.trainable.last)
        if self.adapter is not None:
            self.engine.freeze_base()
        if not pending:
            self.engine.for_training(settings)
            load_newest(folder, self.engine, inputs)
            return
        texts, retain = self._texts
        states, taught = None, None
        if settings.trainable != "all":
            states = states_below(self.engine, places_of(settings, texts, retain), trunk, inputs)
        if settings.objectives.kl:
            taught = Predictions(self.run.path("repair", "teacher"), self._taught_places, settings.objectives.kl_top)
        self.engine.for_training(settings)
        state = load_newest(folder, self.engine, inputs) or State(0, inputs)
        schedule = Schedule(settings, texts, retain)
        path = self.run.path("repair", "control.json")
        standings: list[dict[str, Any]] = distributed.from_rank_0(_read_list(path) if self.first else [])

        def at_control(reached: State) -> bool:
            """After an epoch, on every rank alike, whatever signal one of them has got: it is a forward pass of all."""
            if not ((settings.until_control or settings.look) and schedule.ends_epoch(reached.step)):
                return False
            found = self._standing()
            if settings.look:
                self._write_look(reached.step, found)
            if not settings.until_control:
                return False
            standings[:] = [s for s in standings if s["step"] < reached.step]
            standings.append({"step": reached.step, "ends": found.at_control, **asdict(found)})
            if self.first:
                build(path, lambda temporary: _write_json(temporary, standings))
            return found.at_control

        def ended(step: int) -> bool:
            return step == schedule.steps or any(s["step"] == step and s["ends"] for s in standings)

        if not ended(state.step):
            self.in_steps = True
            state = train(
                self.engine, texts, retain, settings, state,
                states=states,
                taught=taught,
                masking=self._masking(),
                stop=lambda reached: at_control(reached) or self.stopping,
                save_now=self._checkpoint_is_asked,
                save=lambda reached: save(folder, self.engine, reached),
                report=self._report_step,
            )  # fmt: skip
            # Not `self.stopping`: a signal reaches the ranks at different moments, and the state is the same on all.
            if not ended(state.step):
                raise RunError(
                    f"stopped by a signal after a checkpoint: `sani-dist resume {self.run.folder}` goes on from there"
                )
            self.in_steps = False
            if self.stopping:  # after the vote on whether to stop at the last step
                raise KeyboardInterrupt
        if self.first:
            for kept in (trunk, self.run.path("repair", "teacher")):
                shutil.rmtree(kept, ignore_errors=True)
        outputs = [folder / f"step-{state.step:06d}" / "state.json", *([path] if settings.until_control else [])]
        self._done("repair", outputs)

    @cached_property
    def _texts(self) -> tuple[list[PackedRows], PackedRows | None]:
        """The repair text of each epoch, and general text."""
        chosen = self.config.repair.text_of_epochs
        opened = {text: self._needed_rows("repair", text) for text in chosen}
        return [opened[text] for text in chosen], self._rows("general_train")

    @cached_property
    def _taught_places(self) -> list[Place]:
        """Rows of true and of general text: in the place of a surrogate the model before erasing expects who it was."""
        texts, retain = self._texts
        numbers = {id(rows): text for rows, text in zip(texts, self.config.repair.text_of_epochs, strict=True)}
        return [place for place in places_of(self.config.repair, texts, retain) if not numbers.get(id(place[0]), 0)]

    @cached_property
    def _spans(self) -> pd.DataFrame:
        """What repair looks at after each epoch; finding out what can be copied from a prompt takes a pass over all text."""
        return self.corpus.spans()

    def _standing(self) -> Standing:
        """Of the model in training, which is in training again afterwards."""
        rows = {split: self._needed_rows(split) for split in ("repair", "control")}
        self.engine.module.eval()
        found = standing(self.engine, rows, self._spans, self.config.audit.micro_rows)
        self.engine.module.train()
        return found

    def _write_look(self, step: int, found: Standing) -> None:
        """Append what an epoch has come to: the leak above the control, and the mean loss of a token of other text, in nats."""
        rows = {split: r for split in UNSEEN if (r := self._rows(split)) is not None and len(r)}
        self.engine.module.eval()
        scores = {split: score(self.engine, r, self.config.audit.micro_rows) for split, r in rows.items()}
        self.engine.module.train()
        sums = document_losses(scores, rows).groupby("split")[["loss", "tokens"]].sum()
        losses = {str(split): float(loss / tokens) for split, loss, tokens in sums.itertuples()}
        path = self.run.path("repair", "looks.json")
        if self.first:
            known = [look for look in _read_list(path) if look["step"] < step]
            looks = [*known, {"step": step, "low": found.low, "high": found.high, "losses": losses}]
            build(path, lambda temporary: _write_json(temporary, looks))

    def _masking(self) -> Masking | None:
        if not self.engine.masked:
            return None
        tokenizer = tokenizer_of(self.config)
        roles = (LEARN, SENSITIVE) if self.config.repair.objectives.plain else (LEARN,)
        return Masking(_mask_token(tokenizer), len(tokenizer), self.config.repair.seed, roles)

    def _report_step(self, progress: Progress) -> None:
        numbers = {k: v for k, v in asdict(progress).items() if k not in ("step", "steps")}
        self.metrics.write(stage="repair", done=progress.step, total=progress.steps, unit="steps", **numbers)
        self.curves.add(progress.step, {f"repair/{name}": value for name, value in numbers.items()})

    def _checkpoint_is_asked(self) -> bool:
        asked = self.checkpoint_asked.is_set()
        if asked:
            self.checkpoint_asked.clear()
        return asked

    # Export

    def _export_trained(self) -> None:
        shards = local_shards(self.engine.model)
        if self.adapter is not None:
            self._export(self.adapter.stored(self.engine.model, shards))
            return
        layout = find_layout(self.engine.model, self.checkpoint)
        self._export(shards if layout is None else layout.stored(shards), torch_dtype(self.config))

    def _export_erased(self) -> None:
        """Without repair, every untouched tensor leaves as it came: streamed from the source in its own dtype."""
        model = build_empty(read_model_config(self.config.model.path), torch_dtype(self.config))
        if self.adapter is None:
            layout = find_layout(model, self.checkpoint)
        else:
            self.adapter.inject(model)
            layout = self.adapter.layout(model)
        if layout is None:
            raise InputError(
                "erase alone needs a checkpoint whose tensors are the model's parameters; run repair as well"
            )
        shards = list(_stored_shards(self.checkpoint if self.adapter is None else self.adapter.checkpoint))
        self._apply(model, layout.parameters(shards))
        self._export(shards)

    def _export(self, shards: Iterable[LiveShard], dtype: torch.dtype | None = None) -> None:
        """Shards of stored tensors as the folder `model`."""
        form = MODEL if self.adapter is None else self.adapter.form
        hashes = export(shards, self.config.model.source, self.run.path("model"), dtype=dtype, form=form)
        self._done("export", [self.run.path("model", name) for name in hashes])

    # Attack

    def _attack(self) -> None:
        """On the exported model, or on the model of a run that only audits."""
        settings, path = self.config.attack, self.run.path("audit", "attacks.json")
        sanitised = self.run.path("model") if "export" in self.run.stages else None
        splits: dict[str, PackedRows] = {s: r for s in SPLITS if (r := self._rows(s)) is not None and len(r)}
        related = None if settings.related is None else PackedRows(self.run.path(RELATED))
        scene = Scene(
            splits, related, self.corpus, tokenizer_of(self.config), self._load,
            before=self.config.model.source if sanitised is not None else None,
            settings=settings, audit=self.config.audit, repair=self.config.repair,
        )  # fmt: skip
        models = {ATTACKED: sanitised or self.config.model.source}
        if settings.gold is not None:
            models[GOLD] = settings.gold
        inputs = self.run.inputs_sha256("attack")
        known, under_way = distributed.from_rank_0(_known_results(path, inputs) if self.first else ([], None))
        attack(
            scene, models, known, under_way,
            save=lambda results, under_way: self._save_attacks(path, inputs, results, under_way),
            report=lambda done, total: self.metrics.progress("attack", done, total, "attacks"),
        )  # fmt: skip
        self._done("attack", [path])

    def _save_attacks(self, path: Path, inputs: str, results: Sequence[Result], under_way: Task | None) -> None:
        if self.first:
            document = {
                "schema": AUDIT_SCHEMA,
                "inputs_sha256": inputs,
                "settings": redacted(self.config.attack.model_dump(mode="json")),
                "under_way": under_way,
                "results": [asdict(result) for result in results],
            }
            build(path, lambda temporary: _write_json(temporary, document))


def _read_list(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def _known_results(path: Path, inputs: str) -> tuple[list[Result], Task | None]:
    """What an earlier start of the same attacks left, and which of them it had not finished."""
    document = json.loads(path.read_text()) if path.exists() else {}
    if document.get("inputs_sha256") != inputs:
        return [], None
    known = [Result.of(entry) for entry in document["results"]]
    under_way = document.get("under_way")
    return known, (under_way[0], under_way[1]) if under_way else None


def _stored_shards(checkpoint: Checkpoint) -> Iterator[LiveShard]:
    """This rank's range of every stored tensor, read from the files, in its own dtype."""
    for tensor in checkpoint.tensors.values():
        start, stop = partition(tensor.numel, distributed.world_size(), distributed.rank())
        values = torch.empty(stop - start, dtype=tensor.dtype)
        read_range(tensor, start, stop, values)
        yield LiveShard(Shard(tensor.name, tensor.shape, start, stop, tensor.dtype), values)


def _mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.mask_token_id, int)  # `check` saw to it
    return tokenizer.mask_token_id


def _names(units: list[Units]) -> set[str]:
    return {piece.name for group in units for piece in group.slices}


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")
