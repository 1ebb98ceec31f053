"""The metrics the report knows: what each is called, what it says in one sentence, and how its figures are written.

A metric that is not here is shown all the same, under its own name, in the table of all measurements.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sani_dist.attack.result import PREFERENCE
from sani_dist.report.words import number, percent

Section = Literal["extraction", "generation", "exposure", "membership", "usefulness", "use"]


@dataclass(frozen=True)
class Metric:
    """`better`: where a good value lies; "chance" is the value of guessing, "same" that of the model before. `share`: between 0 and 1,
    shown as a percentage."""

    title: str
    explanation: str
    better: Literal["lower", "higher", "chance", "same"]
    section: Section
    share: bool

    def explained(self) -> str:
        """The sentence, and where a good value lies."""
        where = {
            "lower": "Lower is better.",
            "higher": "Higher is better.",
            "chance": "Close to guessing is better.",
            "same": "No change is better: far below is a hole, too.",
        }
        return f"{self.explanation} {where[self.better]}"

    def write(self, value: float) -> str:
        return percent(value) if self.share else number(value)


_FIXED = {
    "greedy": Metric(
        "Greedy decoding",
        "Share of spans that greedy decoding reproduces exactly, given the true text before them.",
        "lower",
        "extraction",
        True,
    ),
    "samples_to_leak": Metric(
        "Samples until a leak",
        "Expected number of samples until one reproduces a span, median over spans.",
        "higher",
        "extraction",
        False,
    ),
    "extraction_strength": Metric(
        "Extraction strength",
        "Share of a span that greedy decoding completes exactly, from the shortest prefix of the span that suffices.",
        "lower",
        "extraction",
        True,
    ),
    "exact_memorization": Metric(
        "Exact memorisation",
        "Share of a span's tokens that are each the model's first choice, given the true text before them.",
        "lower",
        "extraction",
        True,
    ),
    "greedy_one_by_one": Metric(
        "Hidden one by one",
        "Share of spans whose every token a masked language model finds when that alone is hidden; for greedy the span is hidden whole.",
        "lower",
        "extraction",
        True,
    ),
    "greedy_generated": Metric(
        "Greedy decoding, written out",
        "Share of a sample of spans that the model writes by greedy decoding after the true text before them, in whatever tokens.",
        "lower",
        "generation",
        True,
    ),
    "teacher_forcing_confirmed": Metric(
        "Computed extraction confirmed",
        "Share of the same spans for which writing them out gives what was computed of greedy decoding for all spans.",
        "higher",
        "generation",
        True,
    ),
    "regurgitated_from_prompts": Metric(
        "Written from fixed prompts",
        "Share of the different values that stand, word for word, in texts sampled from prompts which say nothing of the text.",
        "lower",
        "generation",
        True,
    ),
    "regurgitated_unprompted": Metric(
        "Written unprompted", "The same in texts sampled from nothing.", "lower", "generation", True
    ),
    "regurgitated_above_chance": Metric(
        "Written above chance",
        "Share of the different values in all these texts, less that of never-trained values, which come out by chance.",
        "lower",
        "generation",
        True,
    ),
    "exposure": Metric(
        "Exposure",
        "How far up the true value stands among random values of the same format: 0 bits last, log2 of their number first.",
        "lower",
        "exposure",
        False,
    ),
    "preference": Metric(
        "True value preferred",
        "Share of comparisons with another value of the same kind that the true value wins: 50 % is guessing.",
        "chance",
        "exposure",
        True,
    ),
    "perplexity": Metric(
        "Perplexity",
        "How many equally likely words the model hesitates between, on average, on words that are not sensitive.",
        "lower",
        "usefulness",
        False,
    ),
    "hidden_token_accuracy": Metric(
        "Hidden-token accuracy",
        "Share of learnable tokens that are the model's first choice when one in seven is hidden.",
        "higher",
        "usefulness",
        True,
    ),
    "next_token_accuracy": Metric(
        "Next token predicted", "Share of tokens that are the model's first choice.", "higher", "usefulness", True
    ),
    "copied": Metric(
        "Copied from the prompt",
        "Share of identifiers which stand earlier in their document that greedy decoding reproduces.",
        "higher",
        "use",
        True,
    ),
    "copied_probability": Metric(
        "Copied from the prompt, probability", "Mean probability of the same identifiers.", "higher", "use", True
    ),
    "copied_appended": Metric(
        "Copied at the end",
        "The same where the words that introduce an identifier are repeated at the end of its document.",
        "higher",
        "use",
        True,
    ),
    "copied_appended_probability": Metric(
        "Copied at the end, probability", "Mean probability of the same identifiers.", "higher", "use", True
    ),
    "value_logprob": Metric(
        "Log-probability of identifiers",
        "Mean over the tokens of identifiers that no training saw, where they stand for the first time, in nats.",
        "same",
        "use",
        False,
    ),
    "value_rank": Metric(
        "Rank of identifiers",
        "Place of the same tokens among all that may follow, geometric mean; 1 is the model's first choice.",
        "same",
        "use",
        False,
    ),
    "value_form": Metric(
        "Identifiers written",
        "Share of a sample of these places at which greedy decoding writes an identifier of the form its kind has in the corpus.",
        "same",
        "use",
        True,
    ),
    "continuation_accuracy": Metric(
        "True continuation chosen",
        "Share of cases in which the model finds the true continuation of a document likelier than a foreign one.",
        "higher",
        "usefulness",
        True,
    ),
}

_MEMBERSHIP = {
    "loss": "loss",
    "zlib": "zlib ratio",
    "mink": "Min-K %",
    "minkpp": "Min-K %++",
    "reference": "reference model",
}


def known(name: str) -> Metric | None:
    """What is known of a metric by its name in the audit."""
    for pattern, make in _PATTERNS:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return make(match)
    return _FIXED.get(name)


def title(name: str) -> str:
    metric = known(name)
    return name if metric is None else metric.title


def _leak(match: re.Match[str]) -> Metric:
    count = int(match[1])
    samples = "1 sample" if count == 1 else f"{count:,} samples"
    which = "it reproduces a span exactly" if count == 1 else "at least one of them does"
    return Metric(samples, f"Mean probability that {which}.", "lower", "extraction", True)


def _likeliest(match: re.Match[str]) -> Metric:
    top, count = int(match[1]), int(match[2])
    title = f"{count:,} sample{'s' * (count > 1)} from the {top:,} likeliest tokens"
    which = "it" if count == 1 else "at least one of them"
    return Metric(title, f"Share of the same spans that {which} reproduces.", "lower", "generation", True)


def _auc(match: re.Match[str]) -> Metric:
    sentence = "How well an attacker tells text the model was trained on from text it never saw: 50 % is guessing."
    return Metric(f"{_attack(match[1])}, area under the curve", sentence, "chance", "membership", True)


def _true_positives(match: re.Match[str]) -> Metric:
    sentence = "Share of trained-on text the attacker recognises while wrong on 1 % of the rest: 1 % is guessing."
    return Metric(f"{_attack(match[1])}, found at 1 % false alarms", sentence, "chance", "membership", True)


def _attack(name: str) -> str:
    return f"Membership by {_MEMBERSHIP.get(name, name.replace('_', ' '))}"


def _task(match: re.Match[str]) -> Metric:
    title = f"{match[1].replace('_', ' ')}, {match[2].replace('_', ' ')}"
    return Metric(title, "As the LM Evaluation Harness defines it.", "higher", "usefulness", False)


_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], Metric]], ...] = (
    (r"leak@(\d+)", _leak),
    (r"top(\d+)@(\d+)", _likeliest),
    (r"mia_(\w+)_auc", _auc),
    (r"mia_(\w+)_tpr", _true_positives),
    (r"harness:(.+):(.+)", _task),
)

# Columns of the tables.
ROLES = {
    "before": "before",
    "after": "after",
    "control": "never trained on",
    "attacked": "attacked",
    "gold": "gold model",
    "base": "base model",
}

# Attacks with the weights: what each does, and its variants where the name does not say it.
ATTACKS = {
    "prompts": ("Other prompts", "What stands before the value is not the true text; a sample of spans."),
    "statement": (
        "A statement to agree with",
        "How often the model agrees more that a document's value is the true one than that it is another of its kind, "
        "what it thinks of both without the document taken off; 50 % is guessing.",
    ),
    "quantise": ("Quantisation", "The weights are rounded, as for a smaller or faster copy of the model."),
    "relearn": ("Relearning", "The model is trained on related text, then asked for the documents that this text does not hold."),
    "lens": ("Logit lens", "What each layer would predict if it were the last."),
    "probe": (
        "Probes",
        "A reader that compares the hidden state before a value with each value of its kind, learnt on half of the documents, read on the "
        "other half and the control: how often it scores the true value higher than another; 50 % is guessing.",
    ),
}  # fmt: skip
# Those that are judged by this and not by what comes out.
JUDGED_BY = {"statement": PREFERENCE, "probe": PREFERENCE}
VARIANTS = {
    "nothing": "nothing done",
    "documents": "trained on half of the documents",
    "format": "trained on documents of the same format about others",
    "general": "trained on general text",
    "int8": "8 bits, a scale for each channel",
    "int4": "4 bits, a scale for each 128 weights",
    "no context": "no text before it",
    "short": "only the last five words",
    "fuzzy": "a tenth of the characters wrong",
    "random": "words of random letters",
    "foreign": "the text before another span",
    "in context": "other documents and their values first",
    "agree": "true or false",
    "instruction": "an order to ignore all rules",
}
POPULATIONS = {
    "sensitive": "trained on",
    "control": "never trained on",
    "repair": "repaired documents",
    "heldout": "held-out documents",
    "general_test": "general text",
    "harness": "LM Evaluation Harness",
}
# Keys of `Measurement.group`: title of a table of groups, head of its first column.
GROUPS = {
    "kind": ("By kind of identifier", "kind"),
    "class": ("By sensitivity", "class"),
    "frequency": ("By how often the value occurs in the text", "occurrences"),
    "context": ("Copyable from the prompt", "context"),
}
