"""The experiment of the publication (arXiv 2510.21322) and its ablations, on small models of its two architectures: docs/paper.md.

`gpt2-small` and `bert-small` have the architectures of GPT-2 and BERT with 8 layers of 128 hidden units and are trained here, since the
publication's weights are on a hub that not every machine reaches: the first on the news of `examples/clinic/english.py`, then on the notes;
the other, which learns from one token in seven, on the notes alone. Where the hub is reached, the same on the two models, with every
combination of layers, share, reset and epochs:

    python benchmarks/paper.py --base gpt2 --base bert-base-uncased --grid full

as a job of a Ray cluster, from a folder that all its nodes share:

    ray job submit -- python benchmarks/paper.py --base gpt2 --base bert-base-uncased --grid full \\
        --folder /shared/paper --launcher ray --workers 8

Each seed has notes, training and erased units of its own. Every step is a run of its own below `--folder`: what is finished there is not
made again. `--render` only writes the page, from results/paper.csv.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import ablation
import harness
from ablation import Setting
from bars import bars

from examples.clinic.english import write_general_text
from examples.clinic.notes import write_notes
from sani_dist import api
from sani_dist.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "sani_dist-benchmark-paper"
VOCABULARY_NOTES = 60
ARTICLES = 100
ROW_LENGTH, VOCABULARY = 384, 4096
TERMS, TERM_COUNT = 30, 4  # how many, and how often each stands in the news at least


# What a setting does not give is as the publication has it: half of the last layer, at random, two epochs.
# Zero in and out of a neuron: no gradient ever reaches it again, so it is pruned.
PAPER = Setting("erase, repair")
METHODS = (
    Setting("repair alone", {"layers": 0}),
    Setting("erase alone", repair={"epochs": 0}),
    PAPER,
    Setting("prune, repair", {"reset": "zero"}),
    Setting("erase, repair 1 epoch", repair={"epochs": 1}),
)
LAYERS = tuple(Setting(f"last {n} layers", {"layers": n}) for n in (2, 4, 8))
SHARES = tuple(Setting(f"{round(100 * share)} % of the neurons", {"fraction": share}) for share in (0.1, 0.25, 1.0))
REDUCED = {"identifiers": (*METHODS, *LAYERS, *SHARES), "terms": METHODS}
# An audit of a masked model asks for every token of every span by itself.
REDUCED_MASKED = {"identifiers": METHODS}
CROSSED = tuple(
    Setting(
        f"{layers} layers, {round(100 * share)} %, {reset}, {epochs} epochs",
        {"layers": layers, "fraction": share, "reset": reset}, {"epochs": epochs},
    )
    for layers, share, reset, epochs in product((1, 2, 4, 8), (0.1, 0.25, 0.5, 1.0), ("init", "zero"), (1, 2))
)  # fmt: skip
FULL = {case: (*settings, *CROSSED) for case, settings in REDUCED.items()}
BEFORE = "before"


@dataclass(frozen=True)
class Base:
    """A model to begin with. `rate`: learning rate of training and repair; `epochs`: until it knows its `notes` by heart."""

    name: str
    rate: float
    epochs: int
    notes: int
    masked: bool
    small: bool  # made here
    pretrain_epochs: int = 0  # on the news
    retain: float = 0.25  # share of news among the notes


BASES = {
    base.name: base
    for base in (
        Base("gpt2-small", 2e-3, 25, 16, masked=False, small=True, pretrain_epochs=30),
        Base("bert-small", 2e-3, 260, 6, masked=True, small=True, retain=0),
        Base("gpt2", 2e-4, 12, 48, masked=False, small=False),
        Base("bert-base-uncased", 1e-4, 60, 48, masked=True, small=False),
    )
}
# (metric of an audit, population, what it is called)
METRICS = (
    ("greedy", "sensitive", "greedy"),
    ("greedy_one_by_one", "sensitive", "one by one"),
    ("leak@100", "sensitive", "leak@100"),
    ("leak@100", "control", "leak@100, never trained on"),
    ("regurgitated_above_chance", "sensitive", "regurgitated"),
    ("perplexity", "heldout", "perplexity, held-out notes"),
    ("perplexity", "general_test", "perplexity, news"),
)


class Experiment:
    """All runs of one base model, below a folder of their own."""

    def __init__(self, base: Base, folder: Path, cluster: Mapping[str, Any]) -> None:
        self.base, self.folder, self.cluster = base, folder / base.name, dict(cluster)
        self.news = folder / "news.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_general_text(self.news)
        articles = self.news.read_text().splitlines(keepends=True)
        self.news.write_text("".join(articles[:ARTICLES]))
        self.terms = frequent_names(self.news)

    def measure(
        self, grid: Mapping[str, Iterable[Setting]], seeds: Iterable[int]
    ) -> Iterator[tuple[str, str, str, float]]:
        """(case, setting, metric, value) of every run, seed by seed."""
        pretrained = self._pretrained()
        for seed in seeds:
            notes = self._notes(seed)
            known = {"identifiers": self._specialised(pretrained, notes, seed), "terms": pretrained}
            if self.base.small and not self.base.pretrain_epochs:  # it knows no terms
                del known["terms"]
            for case in known:
                settings = grid[case]
                corpus = self._corpus(case, notes)
                # What the terms of the news do does not depend on a seed before anything is erased.
                before = self._run(f"{case}-{seed}-{BEFORE}", known[case], corpus, ("prepare", "audit-before"))
                yield from self._measured(case, BEFORE, api.measurements(before, "before"))
                for setting in settings:
                    run = self._run(
                        f"{case}-{seed}-{re.sub('[^a-z0-9]+', '-', setting.name)}", known[case], corpus,
                        ("prepare", "erase", "repair", "audit-after"),
                        erase={"layers": 1, "fraction": 0.5, "seed": seed, **setting.erase},
                        repair={**self._training(2, seed), **setting.repair},
                    )  # fmt: skip
                    yield from self._measured(case, setting.name, api.measurements(run, "after"))

    def _measured(
        self, case: str, setting: str, measurements: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[str, str, str, float]]:
        for name, value in ablation.figures(measurements, METRICS).items():
            yield case, setting, name, value

    def _run(
        self, name: str, model: Path, corpus: Mapping[str, Any], stages: tuple[str, ...], *,
        erase: Mapping[str, Any] | None = None, repair: Mapping[str, Any] | None = None,
    ) -> Run:  # fmt: skip
        config = {
            "model": {"path": str(model), "dtype": "float32"},
            "corpus": {**corpus, "row_length": ROW_LENGTH},
            "erase": erase or {"layers": 0},
            "repair": repair or {"epochs": 0},
            "audit": {"metrics": ["extraction", "generation"], "generation": {"texts": 128}, "micro_rows": 16},
            "cluster": self.cluster,
        }
        return ablation.finished_run(self.folder / name, config, stages)

    def _training(self, epochs: float, seed: int) -> dict[str, Any]:
        rows = {"batch_rows": 4, "micro_rows": 4 // self.cluster["workers"] or 1}
        return {**rows, "epochs": epochs, "learning_rate": self.base.rate, "seed": seed, "checkpoint_every": 10**6}

    def _corpus(self, case: str, notes: Mapping[str, Path]) -> dict[str, Any]:
        if case == "terms":
            return {"general": str(self.news), "detect": [{"name": "terms", "values": self.terms}]}
        return {
            "source": str(notes["notes"]), "control": str(notes["control"]), "heldout": str(notes["heldout"]),
            "general": str(self.news), "subject": "patient", "spans": "spans", "detect": [{"name": "annotations"}],
        }  # fmt: skip

    def _notes(self, seed: int) -> dict[str, Path]:
        own = self.base.notes
        paths = {name: self.folder / f"{name}-{seed}.jsonl" for name in ("notes", "control", "heldout")}
        for number, path in enumerate(paths.values()):
            write_notes(path, own, seed, number * own)
        return paths

    def _pretrained(self) -> Path:
        begun = self.folder / "begun"
        if not begun.exists():
            if self.base.small:
                write_small(self.base, begun, self._vocabulary_text())
            else:
                download(self.base, begun)
        if not self.base.pretrain_epochs:
            return begun
        corpus = {"source": str(self.news), "detect": [{"name": "terms", "values": self.terms}]}
        return self._trained("pretrain", begun, corpus, self.base.pretrain_epochs, 0)

    def _specialised(self, model: Path, notes: Mapping[str, Path], seed: int) -> Path:
        corpus = {key: value for key, value in self._corpus("identifiers", notes).items() if key != "control"}
        return self._trained(f"specialise-{seed}", model, corpus, self.base.epochs, seed)

    def _trained(self, name: str, model: Path, corpus: Mapping[str, Any], epochs: int, seed: int) -> Path:
        repair = {**self._training(epochs, seed), "objectives": {"plain": True}}
        if "general" in corpus:
            repair["retain"] = self.base.retain
        return self._run(name, model, corpus, api.REPAIR_STAGES, repair=repair).path("model")

    def _vocabulary_text(self) -> list[str]:
        """News, and notes of people that no run has."""
        path = self.folder / "vocabulary.jsonl"
        write_notes(path, VOCABULARY_NOTES, seed=10**6)
        lines = [*self.news.read_text().splitlines(), *path.read_text().splitlines()]
        return [json.loads(line)["text"] for line in lines]


def frequent_names(news: Path) -> list[str]:
    """Words of the news that are never written in lower case, the most frequent of those that stand within a sentence."""
    text = news.read_text()
    small = set(re.findall(r"\b[a-z]{3,}\b", text))
    names = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b", text))
    return [n for n, count in names.most_common() if n.lower() not in small and count >= TERM_COUNT][:TERMS]


def write_small(base: Base, folder: Path, texts: list[str]) -> None:
    """A model of the architecture with random weights and a tokenizer trained on `texts`."""
    import torch
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    if base.masked:
        trained = BertWordPieceTokenizer(lowercase=True)
        trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
        ends = [(token, trained.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        trained._tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names = {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
            "unk_token": "[UNK]",
        }
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **names)
        model: Any = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
                pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
            )
        )  # fmt: skip
    else:
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        )
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_embd=128, n_layer=8, n_head=4, n_positions=512, resid_pdrop=0, embd_pdrop=0,
                attn_pdrop=0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def download(base: Base, folder: Path) -> None:
    """The model of that name on the hub, as safetensors in single precision."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    kind = AutoModelForMaskedLM if base.masked else AutoModelForCausalLM
    kind.from_pretrained(base.name, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base.name).save_pretrained(folder)  # type: ignore[no-untyped-call]


# The page


def results(rows: list[harness.Row]) -> Iterator[str]:
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        base, case, setting = row.case.split(" | ")
        found.setdefault((base, case), {}).setdefault(setting, {}).setdefault(row.metric, []).append(row.value)
    for (base, case), settings in found.items():
        yield from ("", f"## {base}, {case}", "")
        yield from plots(base, case, settings)
        yield from ablation.table(settings, [name for _, _, name in METRICS])
    yield ""
    yield from ablation.provenance(rows)


def plots(base: str, case: str, settings: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    """Bars of what leaks, for the methods, and where they were measured for layers and shares."""
    groups = {
        "methods": (BEFORE, *(s.name for s in METHODS)),
        "layers": (BEFORE, PAPER.name, *(s.name for s in LAYERS)),
        "neurons": (BEFORE, *(s.name for s in SHARES[:2]), PAPER.name, SHARES[2].name),
    }
    for title, names in groups.items():
        if not all(name in settings for name in names):
            continue
        drawn = {
            ("1 layer" if title == "layers" else "50 %" if title == "neurons" else name) if name == PAPER.name else name:
                ablation.means(settings[name], ("leak@100", "greedy"))
            for name in names
        }  # fmt: skip
        path = harness.RESULTS / f"paper-{base}-{case}-{title}.svg"
        path.write_text(bars(f"{base}, {case}: by {title}", drawn, lambda value: f"{value:.3f}"))
        yield from (f"![{base}, {case}: by {title}](../benchmarks/results/{path.name})", "")


def main() -> None:
    parser = ablation.options(__doc__, DEFAULT_FOLDER, workers=1)
    parser.add_argument("--base", action="append", choices=list(BASES), help="default: the two small ones")
    arguments = parser.parse_args()
    if not arguments.render:
        recorder = harness.Recorder("paper")
        cluster = {"launcher": arguments.launcher, "workers": arguments.workers}
        for name in arguments.base or ("gpt2-small", "bert-small"):
            experiment = Experiment(BASES[name], arguments.folder.resolve(), cluster)
            reduced = REDUCED_MASKED if experiment.base.masked else REDUCED
            grid = reduced if arguments.grid == "reduced" else FULL
            for case, setting, metric, value in experiment.measure(grid, arguments.seeds):
                recorder.add(f"{name} | {case} | {setting}", metric, value)
        recorder.save(())
    ablation.write_results(PAGE, results(harness.latest_rows("paper")))


if __name__ == "__main__":
    main()
