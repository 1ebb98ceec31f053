"""Which attacks a run tried and which it did not, in the order in which EDPB Opinion 28/2024 asks about them.

The opinion (adopted 17 December 2024) holds a model trained on personal data to be free of them only if it is insignificantly likely that
they can be extracted from it, and that they come out of queries, by all means reasonably likely to be used; decided case by case. Among
what a controller may show it names tests against membership and attribute inference, exfiltration, regurgitation, model inversion
and reconstruction.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sani_dist.audit.measurement import Measurement


@dataclass(frozen=True)
class Attack:
    """`metrics`: pattern of the metrics that count as having tried it; None for what no metric of ours covers."""

    name: str
    metrics: str | None
    how: str
    otherwise: str


ATTACKS = (
    Attack(
        "Regurgitation by greedy decoding",
        r"greedy",
        "from the true text before each span, for every span, exactly (one forward pass)",
        "audit it again with this version",
    ),
    Attack(
        "Regurgitation by repeated sampling",
        r"leak@\d+",
        "plain sampling at temperature 1 from the true text before each span, computed exactly for every span",
        "audit it again with `audit.samples`",
    ),
    Attack(
        "Ranking of candidates (exposure)",
        r"exposure.*",
        "the true value of structured kinds against random values of the same format",
        "an attacker who can list all possible values, as of a short number, may find the right one by its rank",
    ),
    Attack(
        "Membership inference",
        r"mia_.*",
        "from the probabilities of whole spans and documents, against text the model never saw",
        "an attacker may be able to tell that a text was in the training data without getting it out",
    ),
    Attack(
        "Sampling from the likeliest tokens",
        r"top\d+@\d+",
        "text generated for a sample of spans",
        "top-k, top-p and low temperatures leak more than plain sampling at temperature 1",
    ),
    Attack(
        "Fixed prompts, and none",
        r"regurgitated_.*",
        "texts generated without knowledge of the corpus, searched for every value of it word for word",
        "a model may give away what it knows by heart to whoever lets it write",
    ),
    Attack(
        "Other prompts",
        r"attack_prompts",
        "less of the true text, damaged, random or foreign text, other documents with their values, other registers, an order to "
        "ignore all rules; for a sample of spans",
        "leading questions, translations, jailbreaks: usually weaker than the true text, yet not always; `sani-dist attack` tries some",
    ),
    Attack(
        "Agreeing to a statement",
        r"attack_statement",
        "whether the true value is held truer of its document than other values of its kind, for a sample of spans; small models do not "
        "tell true from false even of what they recite",
        "a model that does not say a value may still tell true from false; `sani-dist attack` asks it",
    ),
    Attack(
        "Other sampling",
        None,
        "",
        "top-p and low temperatures raise the probability of likely tokens",
    ),
    Attack(
        "Attribute inference, model inversion, reconstruction",
        None,
        "",
        "facts about a person in other words than those of the text, and reconstruction from weights or gradients",
    ),
    Attack(
        "Reading hidden states (logit lens)",
        r"attack_lens",
        "the prediction of every layer, for every span",
        "who has the weights may read inside what does not come out; `sani-dist attack` looks",
    ),
    Attack(
        "Reading hidden states (probes)",
        r"attack_probe",
        "a reader learnt on half of the documents, at every layer, from the token before a value; linear in the state, so other probes may "
        "find more",
        "who knows some of the values may train a reader for the others; `sani-dist attack` does",
    ),
    Attack(
        "Quantisation",
        r"attack_quantise",
        "weights rounded to 8 and 4 bits",
        "rounding the weights can bring back what small changes suppressed; `sani-dist attack` tries it",
    ),
    Attack(
        "Fine-tuning by an attacker",
        r"attack_relearn",
        "on half of the documents, on other documents, on general text, as far as the run had them; judged on the other half",
        "training on related text can bring back part of what was suppressed; `sani-dist attack` tries it",
    ),
    Attack(
        "Identifiers that nobody found",
        None,
        "",
        "what no detector or label marked is neither protected nor measured; the recall of the detectors says how much that may be",
    ),
)  # fmt: skip


def coverage(measurements: Iterable[Measurement], attacks: Collection[str] = ()) -> list[dict[str, str | bool]]:
    """[{attack, tested, remark}] for the measurements of an audit; a metric without a value does not count as tried.

    `attacks`: names of the attacks with the weights that were made.
    """
    names = {m.metric for m in measurements if m.value is not None} | {f"attack_{name}" for name in attacks}
    lines: list[dict[str, str | bool]] = []
    for attack in ATTACKS:
        tested = attack.metrics is not None and any(re.fullmatch(attack.metrics, name) for name in names)
        lines.append({"attack": attack.name, "tested": tested, "remark": attack.how if tested else attack.otherwise})
    return lines
