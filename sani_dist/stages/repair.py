"""Stage `repair`: train the erased model, from the newest checkpoint if there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from sani_dist.audit.control import ControlComparison, compare_with_control
from sani_dist.audit.losses import document_losses
from sani_dist.audit.measure import UNSEEN
from sani_dist.audit.scores import score
from sani_dist.corpus import PackedRows
from sani_dist.corpus.masking import Masking
from sani_dist.corpus.prepare import values_of_the_corpus
from sani_dist.corpus.rows import AIM, LEARN, SENSITIVE
from sani_dist.corpus.surrogates import DEFAULT_LOCALE, Surrogates
from sani_dist.engine import distributed
from sani_dist.engine.checkpoint import State, checkpoint_path, load_newest, read_state, save
from sani_dist.engine.zero3 import Engine
from sani_dist.errors import RunError
from sani_dist.repair import Predictions, Progress, places_of, predictions, states_below, train
from sani_dist.repair.others import Texts, predictions_among_others
from sani_dist.repair.row_cache import Place, is_kept
from sani_dist.repair.schedule import Schedule
from sani_dist.repair.states import States
from sani_dist.run import build
from sani_dist.stages.rank import CHECKPOINTS, Outputs, Rank, read_list, write_json

# What is computed before the first step and read by every other: removed when the last is done.
TRUNK, TEACHER, REFERENCE = "repair/trunk", "repair/teacher", "repair/reference"
T = TypeVar("T")


def run(rank: Rank) -> Outputs:
    """Raises RunError when a signal ended it after a checkpoint, or when training went wrong."""
    if not rank.trains:
        return {}
    settings, inputs, text = rank.config.repair, rank.run.inputs_sha256("repair"), _Text(rank)
    taught = _ask_others(rank, text, inputs)
    engine = rank.erased()
    states = _states(rank, engine, text, inputs)
    engine.for_training(settings)
    folder = rank.run.path(CHECKPOINTS)
    state = load_newest(folder, engine, inputs) or State(0, inputs)
    ends = _EpochEnds(rank, engine, text.schedule)
    if not ends.ended(state.step):
        rank.in_steps = True
        state = train(
            engine, text.of_epochs, text.retain, settings, state,
            states=states,
            taught=taught,
            masking=_masking(rank),
            stop=lambda reached: ends.at_control(reached) or rank.stopping,
            save_now=lambda: _take(rank),
            save=lambda reached: save(folder, engine, reached),
            report=lambda progress: _report(rank, progress),
        )  # fmt: skip
        # Not `rank.stopping`: a signal reaches the ranks at different moments, and the state is the same on all.
        if not ends.ended(state.step):
            raise RunError(
                f"stopped by a signal after a checkpoint: `sani-dist resume {rank.run.folder}` goes on from there"
            )
        rank.in_steps = False
        if rank.stopping:  # after the vote on whether to stop at the last step
            raise KeyboardInterrupt
    rank.trained(engine)
    if rank.first:
        for name in (TRUNK, TEACHER, REFERENCE):
            shutil.rmtree(rank.run.path(name), ignore_errors=True)
    return _outputs(rank, checkpoint_path(folder, state.step), [ends.path] if settings.until_control else [])


def _outputs(rank: Rank, checkpoint: Path, beside: list[Path]) -> Outputs:
    """The weights of the last checkpoint are outputs too: without them nothing that follows may be made of an earlier one."""
    state = read_state(checkpoint) if rank.first else None
    weights = {} if state is None else {checkpoint / name: sha for name, sha in state.files.items()}
    return {checkpoint / "state.json": None, **dict.fromkeys(beside), **weights}


class _Text:
    """What repair reads. of_epochs: the repair text of each epoch. retain: general text, if there is any."""

    def __init__(self, rank: Rank) -> None:
        settings = rank.config.repair
        opened = {text: rank.needed_rows("repair", text) for text in settings.text_of_epochs}
        self.retain = rank.rows("general_train")
        if settings.objectives.aim:
            opened[0] = opened[0].aimed()
            self.retain = None if self.retain is None else self.retain.aimed()
        self.of_epochs: list[PackedRows] = [opened[text] for text in settings.text_of_epochs]
        self.schedule = Schedule(settings, self.of_epochs, self.retain)
        self.places = places_of(settings, self.of_epochs, self.retain)
        # In the place of a surrogate the model before erasing expects who it was.
        surrogates = {id(rows) for rows, text in zip(self.of_epochs, settings.text_of_epochs, strict=True) if text}
        self.true_places: list[Place] = [place for place in self.places if id(place[0]) not in surrogates]


class _EpochEnds:
    """What is measured after an epoch if the settings ask for it: how far the text to be forgotten stands above the control.

    path: of the file with every epoch's, when repair ends by it.
    """

    def __init__(self, rank: Rank, engine: Engine, schedule: Schedule) -> None:
        self.path = rank.run.path("repair", "control.json")
        self._rank, self._engine, self._schedule, self._settings = rank, engine, schedule, rank.config.repair
        self._found: list[dict[str, Any]] = distributed.from_rank_0(read_list(self.path) if rank.first else [])

    def ended(self, step: int) -> bool:
        """Whether repair is over after `step` steps."""
        return step == self._schedule.steps or any(s["step"] == step and s["ends"] for s in self._found)

    def at_control(self, reached: State) -> bool:
        """Whether repair ends here. On every rank alike, whatever signal one of them has got: it is a forward pass of all."""
        settings = self._settings
        if not ((settings.until_control or settings.look) and self._schedule.ends_epoch(reached.step)):
            return False
        found = self._evaluated(self._comparison)
        if settings.look:
            self._write_look(reached.step, found)
        if not settings.until_control:
            return False
        self._found = [s for s in self._found if s["step"] < reached.step]
        self._found.append({"step": reached.step, "ends": found.at_control, **asdict(found)})
        if self._rank.first:
            build(self.path, lambda temporary: write_json(temporary, self._found))
        return found.at_control

    def _evaluated(self, measure: Callable[[], T]) -> T:
        """What `measure` gives of the model in training, which is in training again afterwards."""
        self._engine.module.eval()
        found = measure()
        self._engine.module.train()
        return found

    def _comparison(self) -> ControlComparison:
        rows = {split: self._rank.needed_rows(split) for split in ("repair", "control")}
        return compare_with_control(self._engine, rows, self._spans, self._rank.config.audit.micro_rows)

    @cached_property
    def _spans(self) -> pd.DataFrame:
        """Finding out what can be copied from a prompt takes a pass over all text."""
        return self._rank.corpus.spans()

    def _write_look(self, step: int, found: ControlComparison) -> None:
        """Append what an epoch has come to: the leak above the control, and the mean loss of a token of other text, in nats."""
        rows, micro_rows = self._rank.splits(UNSEEN), self._rank.config.audit.micro_rows
        scores = self._evaluated(lambda: {split: score(self._engine, r, micro_rows) for split, r in rows.items()})
        sums = document_losses(scores, rows).groupby("split")[["loss", "tokens"]].sum()
        losses = {str(split): float(loss / tokens) for split, loss, tokens in sums.itertuples()}
        path = self._rank.run.path("repair", "looks.json")
        if self._rank.first:
            known = [look for look in read_list(path) if look["step"] < step]
            looks = [*known, {"step": step, "low": found.low, "high": found.high, "losses": losses}]
            build(path, lambda temporary: write_json(temporary, looks))


def _ask_others(rank: Rank, text: _Text, inputs: str) -> Predictions | None:
    """What the source predicts at the tokens of the objective `kl`, and the reference at those of `aim`."""
    objectives, places, folders = rank.config.repair.objectives, text.true_places, {}
    if objectives.kl:
        folders[LEARN] = rank.run.path(TEACHER)
        predictions(rank.original(), places, folders[LEARN], objectives.kl_top, inputs)
    if objectives.aim:
        folders[AIM] = rank.run.path(REFERENCE)
        if not is_kept(folders[AIM], inputs):
            _ask_reference(rank, places, folders[AIM], inputs)
    return Predictions(folders, places, objectives.kl_top) if folders else None


def _ask_reference(rank: Rank, places: list[Place], folder: Path, inputs: str) -> None:
    """The base, whose weights are beside the model's only while it is asked, or the source, which must not tell what it knows."""
    top = rank.config.repair.objectives.kl_top
    if rank.config.reference == "base":
        before = rank.source.before_training()
        assert before is not None  # preflight saw to it
        base = rank.load(before)
        predictions(base, places, folder, top, inputs, AIM)
        base.close()
    elif rank.config.reference == "others":
        corpus, objectives = rank.run.path("corpus"), rank.config.repair.objectives
        taken = values_of_the_corpus(corpus, rank.run.key)
        surrogates = Surrogates(objectives.surrogate or DEFAULT_LOCALE, rank.config.repair.seed, taken)
        texts = Texts(corpus, rank.source.tokenizer, surrogates)
        predictions_among_others(rank.original(), places, folder, top, inputs, texts)
    else:
        predictions(rank.original(), places, folder, top, inputs, AIM, blind=True)


def _states(rank: Rank, engine: Engine, text: _Text, inputs: str) -> States | None:
    """What enters the first layer that is trained, where those below it are not."""
    if rank.config.repair.trainable == "all":
        return None
    return states_below(engine, text.places, rank.run.path(TRUNK), inputs)


def _masking(rank: Rank) -> Masking | None:
    if not rank.source.masked:
        return None
    settings, tokenizer = rank.config.repair, rank.source.tokenizer
    roles = (LEARN, SENSITIVE) if settings.objectives.plain else (LEARN,)
    return Masking(rank.source.mask_token, len(tokenizer), settings.seed, roles)


def _report(rank: Rank, progress: Progress) -> None:
    numbers = {k: v for k, v in asdict(progress).items() if k not in ("step", "steps")}
    rank.metrics.write(stage="repair", done=progress.step, total=progress.steps, unit="steps", **numbers)
    rank.curves.add(progress.step, {f"repair/{name}": value for name, value in numbers.items()})


def _take(rank: Rank) -> bool:
    """Whether a checkpoint was asked for since this was last called."""
    asked = rank.checkpoint_asked.is_set()
    if asked:
        rank.checkpoint_asked.clear()
    return asked
