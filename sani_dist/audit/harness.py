"""Tasks of the LM Evaluation Harness (EleutherAI, package `lm-eval`) on the sharded model: what it is worth beyond the text at hand.

The harness asks for log-likelihoods and texts; both come from what the audit has, `score` over packed rows and `generate`. Every rank
asks the same questions at the same time, so the collectives fit together and each has the answers.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sani_dist.audit.measurement import REACH, Measurement
from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import score
from sani_dist.config import AuditSettings, HarnessSettings
from sani_dist.corpus.encode import Encoded, pieces
from sani_dist.corpus.pack import pack, write_rows
from sani_dist.corpus.rows import IGNORE, LEARN, PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.zero3 import Engine
from sani_dist.errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

# Tokens of an answer, where a task names no number.
ANSWER_TOKENS = 256
POPULATION = "harness"


def check_tasks(settings: HarnessSettings) -> None:
    """Raises InputError when the harness is not installed, or a task is none that it knows."""
    if not settings.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("audit.harness.tasks: the package lm-eval is not installed; pip install 'sani_dist[harness]'")
    known = _task_manager(settings).all_tasks
    for number, task in enumerate(settings.tasks, 1):
        if task not in known:
            raise InputError(
                f"audit.harness.tasks: entry {number} is no task of lm-eval; `lm-eval ls tasks` lists them"
            )


def harness(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: AuditSettings, row_length: int
) -> list[Measurement]:
    """One measurement for each number that a task of `settings.harness` reports, as `harness:<task>:<metric>`. All ranks call it.

    The interval is the normal one of the standard error that the harness gives. `row_length`: tokens that a question may have; longer
    ones lose their beginning.
    """
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=_model(engine, tokenizer, settings, row_length), tasks=list(settings.harness.tasks),
        task_manager=_task_manager(settings.harness), limit=settings.harness.limit, log_samples=False, bootstrap_iters=0,
    )  # fmt: skip
    found = distributed.from_rank_0(found)  # the harness gives it to the first process of a host alone
    assert found is not None
    measured = []
    for task, numbers in found["results"].items():
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            half = REACH * error if isinstance(error, float) else float("nan")
            low, high = (None, None) if np.isnan(half) else (value - half, value + half)
            count = int(found["n-samples"][task]["effective"])
            measured.append(Measurement(f"harness:{task}:{metric}", POPULATION, value, low, high, count, {}))
    return measured


def _task_manager(settings: HarnessSettings) -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if settings.include is None else str(settings.include))


def _model(engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: AuditSettings, row_length: int) -> LM:
    """The sharded model as the harness wants one. Made here, since its base class is in an optional package."""
    from lm_eval.api.model import LM

    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    class Sharded(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            asked = [_encoded(*_split(ids_of, begin, *request.args), row_length) for request in requests]
            return _sums(engine, asked, row_length, settings.micro_rows)

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            asked, owner = [], []
            for number, request in enumerate(requests):
                parts = pieces(_encoded([begin], ids_of(request.args[0]), None), row_length)
                asked += parts
                owner += [number] * len(parts)
            sums = np.zeros(len(requests))
            np.add.at(sums, owner, [total for total, _ in _sums(engine, asked, row_length, settings.micro_rows)])
            return sums.tolist()

        def generate_until(self, requests: list[Instance]) -> list[str]:
            prompts, stops = [], []
            for request in requests:
                context, how = request.args
                until = how.get("until") or []
                stops.append([until] if isinstance(until, str) else list(until))
                tokens = int(how.get("max_gen_toks", ANSWER_TOKENS))
                prompts.append(Prompt(np.array((ids_of(context) or [begin])[-row_length:]), tokens))
            texts = generate(engine, prompts, Decoding(), settings.generation.rows)
            return [_until(_decoded(tokenizer, lines[0]), stop) for lines, stop in zip(texts, stops, strict=True)]

    return Sharded()


def _split(ids_of: Any, begin: int, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it. Spaces between the two belong to what follows, as tokenizers have it."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before, whole = ids_of(context), ids_of(context + continuation)
    return before or [begin], whole[len(before) :]


def _encoded(before: list[int], after: list[int], most: int | None) -> Encoded:
    """A text whose tokens `after` count, without what would make it longer than `most`."""
    role = np.array([IGNORE] * len(before) + [LEARN] * len(after), dtype=np.uint8)
    ids = np.array(before + after, dtype=np.int32)
    return Encoded(0, ids[-most:] if most else ids, role[-most:] if most else role, ())


def _sums(engine: Engine, asked: Sequence[Encoded], row_length: int, micro_rows: int) -> list[tuple[float, bool]]:
    """Of each text, the summed log-probability of the tokens that count, and whether each is the arg-max."""
    numbered = [Encoded(number, text.input_ids, text.role, ()) for number, text in enumerate(asked)]
    places: dict[int, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        for row, packed in enumerate(
            write_rows(path, pack(numbered, row_length, alone=engine.alone), row_length, padding=0)
        ):
            start = 0
            for text in packed:
                places[text.document] = row, start
                start += len(text.input_ids)
        scores = score(engine, PackedRows(path), micro_rows)
    found = []
    for text in numbered:
        row, start = places[text.document]
        counted = start + np.flatnonzero(text.role == LEARN)
        found.append(
            (float(scores.logprob[row, counted].astype(np.float64).sum()), bool(scores.is_argmax[row, counted].all()))
        )
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    text: str = tokenizer.decode(ids)
    return text


def _until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
