"""The settings of a run: one pydantic model per stage. `config_file.py` reads them from YAML; docs/settings.md lists them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

SensitivityClass = Literal["direct", "indirect", "confidential"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, and values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """Which model is sanitised, and in which precision."""

    path: Path = Field(description="folder of the Hugging Face checkpoint (safetensors)")
    adapter: Path | None = Field(
        None, description="folder of a LoRA adapter of the model of `path`: it alone is sanitised and exported"
    )
    base: Path | None = Field(
        None,
        description="checkpoint before the sensitive training, for erase.reset=base and objectives.aim; the audit compares with it",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="precision of training and of the export")
    allow_pickle: bool = Field(
        False, description="weights may be in .bin files, here, in base and in audit.reference; read as tensors alone"
    )

    @property
    def source(self) -> Path:
        """The folder of what is sanitised."""
        return self.path if self.adapter is None else self.adapter

    @property
    def has_base(self) -> bool:
        """Whether the model before the sensitive training is there; of an adapter it always is."""
        return self.base is not None or self.adapter is not None


class Pattern(Settings):
    """A regular expression of an identifier that general detectors do not know, such as a record number."""

    kind: str = Field(description="kind of the identifier, for example RECORD_NUMBER")
    regex: str = Field(description="Python regular expression; group 1, if there is one, is the sensitive part")
    sensitivity: SensitivityClass = Field("direct", description="class of the identifier in tables and report")


class AnnotationsDetector(Settings):
    """Spans that are already in the data (column `corpus.spans`)."""

    name: Literal["annotations"]


class TermsDetector(Settings):
    """Confidential terms from a file (one a line) or from the settings, matched on word boundaries."""

    name: Literal["terms"]
    path: Path | None = Field(None, description="text file with one term a line")
    values: tuple[str, ...] = Field((), description="terms, beside those of the file or instead of one")
    kind: str = Field("TERM", description="kind of the terms in tables and report")
    sensitivity: SensitivityClass = Field("confidential", description="class of the terms in tables and report")

    @model_validator(mode="after")
    def _has_terms(self) -> TermsDetector:
        if self.path is None and not self.values:
            raise ValueError("needs `path` (a file with one term a line) or `values`")
        return self


class PresidioDetector(Settings):
    """Microsoft Presidio over a spaCy model, offline, with extra patterns that win over its own findings."""

    name: Literal["presidio"]
    spacy_model: str = Field(
        "en_core_web_sm", description="name of the installed spaCy model that finds names and places"
    )
    language: str = Field("en", description="language of the text and of the spaCy model, for example de")
    entities: tuple[str, ...] = Field(
        (
            "PERSON",
            "DATE_TIME",
            "LOCATION",
            "PHONE_NUMBER",
            "EMAIL_ADDRESS",
            "US_SSN",
            "CREDIT_CARD",
            "IP_ADDRESS",
            "URL",
        ),
        description="Presidio entities that count as identifiers",
    )
    indirect: tuple[str, ...] = Field(
        ("DATE_TIME", "LOCATION"), description="entities that identify only in combination"
    )
    patterns: tuple[Pattern, ...] = Field(
        (), description="expressions of identifiers of your own, such as record numbers"
    )
    ordinary_words: Literal["drop", "keep"] = Field(
        "drop",
        description="a PERSON of one word that the corpus also has in lower case, or an acronym: drop, unless a longer name or a "
        "title speaks for it; keep: protect it wherever it stands",
    )
    score: Annotated[float, Field(ge=0, le=1)] = Field(
        0.35, description="confidence below which a finding of Presidio does not count"
    )


class RareTermsDetector(Settings):
    """Indirect identifiers: terms linked to fewer than `subjects` record subjects (arXiv 2501.02407)."""

    name: Literal["rare_terms"]
    subjects: Annotated[int, Field(ge=2)] = Field(
        2, description="a term of fewer record subjects than this is sensitive"
    )
    min_length: Annotated[int, Field(ge=1)] = Field(4, description="characters that a term has at least")


Detector = Annotated[
    AnnotationsDetector | TermsDetector | PresidioDetector | RareTermsDetector, Field(discriminator="name")
]


def _as_written(value: Any) -> Any:
    """A number of a subject, which YAML does not read as text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class TargetSettings(Settings):
    """Right to erasure: only these values, or only the records of these subjects, are sensitive. Each of them has to be in the text."""

    values: tuple[str, ...] = Field((), description="only these values are sensitive")
    subjects: tuple[Annotated[str, BeforeValidator(_as_written)], ...] = Field(
        (), description="only what stands in the records of these subjects is sensitive"
    )


class CorpusSettings(Settings):
    """The text, what is sensitive in it, and the text that must not suffer."""

    source: str | None = Field(
        None,
        description="JSONL, JSON, CSV, TSV, Parquet, CoNLL or i2b2 XML file (also .gz, .zst), folder of such files of one kind or of .txt "
        "files, `datasets` folder, or hub id as org/name or hf://org/name; null: repair on `general`",
    )
    text: str = Field("text", description="column of the text, or `messages` for chats")
    subject: str | None = Field(None, description="column of the record subject, for example the patient")
    spans: str | None = Field(
        None,
        description="column of labelled spans [{start, end, kind, class}], also as annotation tools write them, or the path of what a "
        "person corrected after `detect --review`; protected if `annotations` is in `detect`, else used only to score the detectors and in "
        "the audit",
    )
    detect: tuple[Detector, ...] = Field((), description="detectors of sensitive spans, any number together")
    target: TargetSettings | None = Field(
        None, description="right to erasure: only these values, or only these people's records, are sensitive"
    )
    heldout: str | None = Field(None, description="documents the model never saw: perplexity is measured on them")
    control: str | None = Field(
        None, description="documents with identifiers the model never saw, the control of the audit"
    )
    general: str | None = Field(None, description="general text: part is mixed into repair, part measures utility")
    row_length: Annotated[int, Field(ge=16)] = Field(512, description="tokens in a packed row")
    packing: Literal["documents", "none"] = Field(
        "documents",
        description="documents share rows; none: each has rows of its own, which is chosen by itself for a model that sees all of a row",
    )

    @model_validator(mode="after")
    def _is_complete(self) -> CorpusSettings:
        if self.source is None and self.general is None:
            raise ValueError("needs `source`, or `general` with a `terms` detector")
        if not self.detect and (self.target is None or not self.target.values):
            raise ValueError(
                "needs at least one entry in `detect` (annotations, terms, presidio, rare_terms) or `target.values`"
            )
        if any(d.name == "annotations" for d in self.detect) and self.spans is None:
            raise ValueError("`detect: annotations` needs `spans`, the column that holds them")
        if any(d.name == "rare_terms" for d in self.detect) and self.subject is None:
            raise ValueError("`detect: rare_terms` needs `subject`, the column of the record subject")
        if self.target is not None and self.target.subjects and self.subject is None:
            raise ValueError("`target.subjects` needs `subject`, the column of the record subject")
        return self


class EraseSettings(Settings):
    """Which neurons or heads are reset, and to what."""

    layers: Annotated[int, Field(ge=0)] = Field(1, description="how many of the last layers; 0 erases nothing")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="share of each layer's units that is reset")
    select: Literal["random", "attribution", "everything"] = Field(
        "random",
        description="attribution: units through which most flows to sensitive tokens; everything: every parameter, whatever layers, "
        "fraction and units say, so that repair begins at the base (of an adapter, at a fresh one)",
    )
    relative_to: Literal["general", "ordinary", "both"] = Field(
        "general",
        description="text whose tokens must not suffer: general text where there is any, the ordinary tokens of the corpus, or both",
    )
    reset: Literal["init", "zero", "base"] = Field(
        "init", description="what the units become: new initial values, zero, or what they are in `model.base`"
    )
    units: Literal["mlp", "heads", "both"] = Field("mlp", description="neurons of the MLPs, attention heads, or both")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of the random choice and of new initial values")

    @model_validator(mode="after")
    def _fit_together(self) -> EraseSettings:
        if self.begins_at_base and self.reset != "base":
            raise ValueError("`select: everything` goes with `reset: base`: anything else would leave no model")
        return self

    @property
    def begins_at_base(self) -> bool:
        """Whether nothing of the sensitive training is left when repair begins."""
        return self.layers > 0 and self.select == "everything"


class Objectives(Settings):
    """What repair learns beside the ordinary tokens, in any combination. None of them: sensitive tokens are only left out of the loss."""

    unlikelihood: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of -log(1 - p) on sensitive tokens, which pushes them down; 0: none"
    )
    floor: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability under which unlikelihood leaves a token alone: what guessing alone would reach"
    )
    aim: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="weight of KL(reference || model) where a sensitive value stands first in a row: the model is drawn to what one that "
        "never knew the value says there; where it stands again, as a copy of what is before it, it is learnt; 0: none",
    )
    reference: Literal["base", "others", "itself"] | None = Field(
        None,
        description="what aim draws to: base: model.base, of an adapter the model without it; others: the model to sanitise with other "
        "identities in the context, and not the true token; itself: the model to sanitise, and not the true token; default: base "
        "where there is one, else others",
    )
    surrogate: str | None = Field(
        None,
        description="locale of faker, such as en_US: each epoch, fresh identities of the same kind and format take the place of the "
        "true ones and are learnt; with unlikelihood or aim, such epochs and those on the true text take turns",
    )
    kl: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="weight of KL(model before erasing || model) on the ordinary tokens of the true and of general text; 0: none",
    )
    kl_top: Annotated[int, Field(ge=1)] = Field(
        32,
        description="of the distributions that kl and aim draw to so many tokens are kept, the others count as one",
    )
    plain: bool = Field(
        False, description="ordinary fine-tuning on every token (how the demo makes a model that has memorised)"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Objectives:
        if self.plain and (self.unlikelihood or self.aim or self.surrogate is not None or self.kl):
            raise ValueError("`plain` learns the true values: it goes with no other objective")
        if self.aim and self.unlikelihood:
            raise ValueError(
                "`aim` draws sensitive tokens to a reference, `unlikelihood` pushes them down: set one of them to 0"
            )
        if self.reference is not None and not self.aim:
            raise ValueError("`reference` is that of `aim`, which is 0")
        if self.floor and not self.unlikelihood:
            raise ValueError("`floor` is that of `unlikelihood`, which is 0")
        if self.surrogate is not None:
            from faker.config import AVAILABLE_LOCALES

            if self.surrogate not in AVAILABLE_LOCALES:
                raise ValueError("`surrogate` is no locale that faker knows; expected one such as en_US or de_DE")
        return self


class LastLayers(Settings):
    """Of a model's layers, the last ones."""

    last: Annotated[int, Field(ge=1)] = Field(description="how many of the last layers are trained")


class RepairSettings(Settings):
    """Fine-tuning with sensitive tokens left out of the loss."""

    objectives: Objectives = Objectives()
    epochs: Annotated[float, Field(ge=0)] = Field(2, description="passes over the text; 0 repairs nothing")
    until_control: bool = Field(
        False,
        description="end after the first epoch in which neither leak nor membership of the sensitive spans is above the control",
    )
    look: bool = Field(
        False,
        description="after each epoch, write leak on the sensitive spans and the loss of other text to repair/looks.json; changes nothing",
    )
    retain: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of rows of general text in each batch")
    batch_rows: Annotated[int, Field(ge=1)] = Field(8, description="rows of a step over all workers")
    micro_rows: Annotated[int, Field(ge=1)] = Field(1, description="rows of one forward pass of one worker")
    trainable: Literal["all"] | LastLayers = Field(
        "all",
        description="`last: N`: only the last N layers; what is below runs once and is kept on disk until they are trained",
    )
    activation_checkpointing: bool | Annotated[float, Field(gt=0, lt=1)] = Field(
        False,
        description="layers, or this share of them, run again in backward and keep nothing till then: less memory, up to a third more time",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="highest learning rate, of AdamW")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the steps with a rising learning rate"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the learning rate falls")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW: decay of the first and the second moment")
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="largest norm of the gradient")
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(100, description="steps between checkpoints")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of the order of the rows, of dropout and of surrogates"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> RepairSettings:
        if self.objectives.kl and not self.retain and self.text_of_epochs and 0 not in self.text_of_epochs:
            raise ValueError(
                "`objectives.kl` is on true and general text, and surrogates alone are neither; set `retain`"
            )
        return self

    @property
    def text_of_epochs(self) -> tuple[int, ...]:
        """For each epoch the number of its text in `tokens/`: 0 is the true one, the others have surrogates."""
        count = math.ceil(self.epochs)
        if self.objectives.surrogate is None:
            return (0,) * count
        # Only the true text has tokens to push down or to draw: it comes first, and every other epoch.
        on_true = self.objectives.unlikelihood or self.objectives.aim
        return tuple(0 if on_true and e % 2 == 0 else e + 1 for e in range(count))


class GenerationSettings(Settings):
    """What an audit lets the model write."""

    spans: Annotated[int, Field(ge=1)] = Field(
        24, description="spans that it is asked to write from the true text before them, and as many of the control"
    )
    samples: Annotated[int, Field(ge=1)] = Field(
        4, description="sampled texts for each of these spans, beside the greedy one"
    )
    prompts: tuple[str, ...] = Field(
        ("The patient's name is", "Name:", "Phone:", "Address:", "Dear", "From:"),
        description="prompts that say nothing of the text; [] for none",
    )
    texts: Annotated[int, Field(ge=0)] = Field(32, description="texts from these prompts, and as many from nothing")
    tokens: Annotated[int, Field(ge=1)] = Field(32, description="tokens of each of these texts")
    top_k: Annotated[int, Field(ge=1)] = Field(40, description="sampling is from so many of the likeliest tokens")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of this sampling")
    rows: Annotated[int, Field(ge=1)] = Field(32, description="texts that one worker writes at once")


class HarnessSettings(Settings):
    """Tasks of the LM Evaluation Harness that an audit also runs; needs the extra `harness`."""

    tasks: tuple[str, ...] = Field(
        (), description="names of tasks, for example hellaswag; `lm-eval ls tasks` lists them"
    )
    include: Path | None = Field(None, description="folder with further tasks (YAML)")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="questions of each task; default: all")


class AuditSettings(Settings):
    """What is measured before and after. Perplexity always is."""

    metrics: tuple[Literal["extraction", "generation", "exposure", "membership", "utility", "use"], ...] = Field(
        ("extraction", "generation", "exposure", "membership", "utility", "use"),
        description="families of metrics; fewer cost less",
    )
    samples: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 10, 100, 1000), description="n of (n, p)-discoverable extraction"
    )
    exposure_spans: Annotated[int, Field(ge=1)] = Field(
        24, description="values of structured kinds that are ranked, and as many of the control"
    )
    exposure_candidates: Annotated[int, Field(ge=1)] = Field(
        32, description="random values of the same format that each is ranked among; 1023 show up to 10 bits"
    )
    continuations: Annotated[int, Field(ge=1)] = Field(
        32, description="questions for the true next sentence, in held-out and in general text"
    )
    copying_documents: Annotated[int, Field(ge=1)] = Field(
        200,
        description="control documents at whose end some of their values are repeated, to see whether the model copies them",
    )
    generation: GenerationSettings = GenerationSettings()
    harness: HarnessSettings = HarnessSettings()
    reference: Path | None = Field(
        None, description="model of the same tokenizer that never saw the text: membership is also judged against it"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of what is ranked among what")
    micro_rows: Annotated[int, Field(ge=1)] = Field(4, description="rows of one forward pass of one worker")


class AttackSettings(Settings):
    """What an attacker who has the weights tries. `sani-dist attack` makes these; a run does not."""

    attacks: tuple[Literal["prompts", "statement", "lens", "probe", "quantise", "drift", "relearn"], ...] = Field(
        ("prompts", "statement", "lens", "probe", "quantise", "drift", "relearn"),
        description="which are made; relearning costs most",
    )
    gold: Path | None = Field(
        None,
        description="model that never saw the sensitive text, trained on the rest: what each attack gets out of it is nobody's memory",
    )
    related: str | None = Field(
        None,
        description="documents of the same format about others, which the attacker of relearning has; default: corpus.heldout, else "
        "corpus.control",
    )
    relearn_on: tuple[Literal["documents", "format", "general"], ...] = Field(
        ("documents", "format", "general"),
        description="what the attacker of relearning has: half of the documents, documents of the same format about others, general text",
    )
    relearn_grid: Literal["reduced", "full"] | None = Field(
        None,
        description="reduced: rates 1e-4 and 3e-4, after 6 and 25 steps, all weights; full: rates 3e-5, 1e-4, 3e-4 and 1e-3, after 6, 25, "
        "100 and 300 steps, all weights and a LoRA; default: full on GPUs, reduced on CPUs",
    )
    relearn_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="learning rates of the attacker; default: the grid's"
    )
    relearn_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="steps of 8 rows after which the attacker asks; default: the grid's"
    )
    relearn_ways: tuple[Literal["weights", "lora"], ...] = Field(
        (), description="what the attacker trains, all weights or a LoRA of rank 16; default: the grid's"
    )
    prompt_spans: Annotated[int, Field(ge=1)] = Field(
        200, description="spans that are asked for with other prompts, and as many of the control"
    )
    probe_spans: Annotated[int, Field(ge=8)] = Field(
        500, description="spans that probes learn from, and as many that they are tested on, and of the control"
    )
    drift_tokens: Annotated[int, Field(ge=8)] = Field(1024, description="tokens whose hidden states are compared")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of which documents the attacker has, and which spans are asked for"
    )


Share = Annotated[float, Field(gt=0, lt=1)]
Rise = Annotated[float, Field(ge=0)]


class VerifySettings(Settings):
    """Limits that a finished run has to keep, tested on the bad end of each 95 % interval. A limit left out is not tested."""

    max_greedy: Share | None = Field(None, description="share of spans that greedy decoding reproduces")
    max_leak100: Share | None = Field(
        None, description="probability that 100 samples reproduce a span, mean over spans"
    )
    max_leak100_above_control: Share | None = Field(
        None, description="the same, less that of identifiers the model was never trained on"
    )
    max_utility_loss: Rise | None = Field(
        None, description="relative rise of perplexity on held-out documents, 0.05: 5 %"
    )
    max_general_loss: Rise | None = Field(None, description="relative rise of perplexity on general text")
    min_copying: Share | None = Field(
        None,
        description="of what the better of the model before and model.base copies from its prompt, the share that must be left, 0.9: 90 %",
    )
    max_plausibility_shift: Rise | None = Field(
        None,
        description="relative change, up or down, of the mean log-probability of identifiers that no training saw, against model.base, "
        "without it against the model before; 0.15: 15 %",
    )


def _number_of_workers(value: Any, validated: ValidatorFunctionWrapHandler) -> int | tuple[int, int]:
    try:
        found: int | tuple[int, int] = validated(value)
        least, most = found if isinstance(found, tuple) else (found, found)
    except ValidationError:
        least, most = 0, 0
    if not 1 <= least <= most:
        raise ValueError("expected how many, such as 4, or the least and the most, such as [2, 4]")
    return found


class ClusterSettings(Settings):
    """Who starts the ranks, and on what."""

    launcher: Literal["local", "ray"] = Field(
        "local", description="local: processes of this machine; ray: a worker group of Ray Train, here or on a cluster"
    )
    workers: Annotated[int | tuple[int, int], WrapValidator(_number_of_workers)] = Field(
        1,
        description="ranks; with ray also [least, most]: the group shrinks when a node is lost and grows when one comes",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        description="what ranks compute on; auto: GPUs where there are any, and an error where these cannot be used",
    )
    deterministic: bool = Field(
        False,
        description="on GPUs, nothing adds in an order of its own: two runs give the same bits, more slowly; on CPUs they do anyway",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads of each worker; default: cores / workers"
    )
    timeout_seconds: Annotated[int, Field(ge=1)] = Field(
        1800,
        description="how long a rank waits for the others in a collective before the run fails and names who did not come",
    )
    ds_config: Path | None = Field(None, description="DeepSpeed JSON; default: ds_configs/zero3.json of the package")
    prepare_workers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="processes of Ray, one CPU each, that find what is sensitive and tokenise; 0: the process of the command does",
    )
    # What follows is read where Ray is used: by launcher: ray, and with prepare_workers `address` and `runtime_env`.
    address: str | None = Field(
        None,
        description="host:port of a Ray cluster, or `auto`; default: RAY_ADDRESS, else a Ray of its own on this machine",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1, description="CPUs of the cluster that each worker takes")
    gpus_per_worker: Annotated[int, Field(ge=0)] | None = Field(
        None, description="default: 1 where the cluster has GPUs"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="further resources of each worker, as the nodes of the cluster name them"
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK",
        description="PACK: on few nodes; SPREAD: on many; STRICT_: on one, on a different one each, or not at all",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="how often a worker may be lost before the run fails; each time a new group goes on"
    )
    start_minutes: Annotated[int, Field(ge=1)] = Field(
        10, description="how long a run waits, in all, for a cluster that lacks the resources of its workers"
    )
    resize_seconds: Annotated[float, Field(gt=0)] = Field(
        60, description="of [least, most] workers: how often a group looks whether it could be larger"
    )
    runtime_env: dict[str, Any] = Field(
        {}, description="Ray's runtime environment of the workers, for example {env_vars: {NCCL_SOCKET_IFNAME: eth0}}"
    )

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> ClusterSettings:
        if self.address is not None and self.address.startswith(("ray://", "http://", "https://")):
            raise ValueError("`address` is host:port of the cluster's head; from outside, use launch/ray_submit.py")
        if self.launcher == "local" and not isinstance(self.workers, int):
            raise ValueError("`workers`: the least and the most are for launcher: ray; expected how many, such as 4")
        if {"CPU", "GPU"} & set(self.resources):
            raise ValueError("`resources` is for others than CPU and GPU: use cpus_per_worker and gpus_per_worker")
        return self


class Config(Settings):
    """All settings of one run."""

    model: ModelSettings
    corpus: CorpusSettings
    erase: EraseSettings = EraseSettings()
    repair: RepairSettings = RepairSettings()
    audit: AuditSettings = AuditSettings()
    attack: AttackSettings = AttackSettings()
    verify: VerifySettings = VerifySettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def reference(self) -> Literal["base", "others", "itself"]:
        """What `repair.objectives.aim` draws to: what is asked for, else the best there is."""
        return self.repair.objectives.reference or ("base" if self.model.has_base else "others")

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.model.adapter is not None:
            if self.model.base is not None:
                raise ValueError("model.base: the base of model.adapter is model.path; leave it out")
            if self.erase.layers and self.erase.reset != "base":
                raise ValueError(
                    "erase.reset: what an adapter has of a neuron can only be taken away, which leaves the base's neuron; set it to base"
                )
        elif self.erase.layers and self.erase.reset == "base" and self.model.base is None:
            raise ValueError("erase.reset=base needs model.base, the checkpoint before the sensitive training")
        if self.repair.objectives.reference == "base" and not self.model.has_base:
            raise ValueError(
                "repair.objectives.reference=base needs model.base, the checkpoint before the sensitive training"
            )
        if self.repair.retain > 0 and self.corpus.general is None:
            raise ValueError(
                "repair.retain needs corpus.general, the text to mix in; without any, set it to 0, or `preset: paper`"
            )
        for name in ("until_control", "look"):
            if getattr(self.repair, name) and self.corpus.control is None:
                raise ValueError(f"repair.{name} needs corpus.control, documents that no training ever saw")
        return self
