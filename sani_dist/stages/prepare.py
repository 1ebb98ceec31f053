"""Stage `prepare`: text -> spans -> tokens, and the hash of the model. Before ranks start, so that bad input never costs a cluster."""

from __future__ import annotations

import logging
from functools import partial

from sani_dist.corpus import prepare as prepare_corpus
from sani_dist.corpus.executor import Executor
from sani_dist.corpus.prepare import write_plain
from sani_dist.engine.source import open_source
from sani_dist.metrics import Metrics
from sani_dist.run import RELATED, Run, build
from sani_dist.stages.preflight import notes, rows_alone
from sani_dist.stages.rank import write_json

logger = logging.getLogger(__name__)


def run(run: Run, metrics: Metrics, executor: Executor = map) -> None:
    """executor: who works on the batches of documents. Raises InputError for text that cannot work."""
    source, settings = open_source(run.config.model), run.config
    hashes = build(run.path("source.json"), lambda path: write_json(path, source.hashes()))
    for line in notes(settings, source, source.empty()[0]):
        logger.warning(line)

    def report(done: int, total: int | None) -> None:
        metrics.progress("prepare", done, total or done + 1, "documents")

    prepare_corpus(
        settings.corpus, source.tokenizer, run.folder, run.key, report, settings.repair,
        alone=rows_alone(settings, source), executor=executor
    )  # fmt: skip
    outputs = [p for folder in ("corpus", "tokens") for p in sorted(run.path(folder).rglob("*")) if p.is_file()]
    run.mark_done("prepare", [hashes, *outputs])


def prepare_attack(run: Run) -> None:
    """Tokens of the text that only an attacker has. One process."""
    if run.config.attack.related is not None:
        path = run.path(RELATED)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source, corpus = open_source(run.config.model), run.config.corpus
        alone = rows_alone(run.config, source)
        build(path, partial(write_plain, run.config.attack.related, corpus, source.tokenizer, alone=alone))
