"""The commands, and nothing else: each one reads its arguments and calls `sani_dist.api`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sani_dist.config import Config, Objectives
from sani_dist.config_file import changes_of, cluster_changes, load_config
from sani_dist.errors import InputError, SaniError
from sani_dist.messages import plain, trace
from sani_dist.presets import DEFAULT_PRESET, PRESETS

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False,
    help="Remove memorised personal and confidential data from a language model, and measure what is left.",
)  # fmt: skip
console = Console()

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run folder")]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", help="new run folder; the sanitised model is put in its folder model/")
]


def _from_input(overrides: list[str] | None) -> list[str] | None:
    """`--set -` stands for the lines of standard input."""
    if overrides is None or "-" not in overrides:
        return overrides
    lines = [line for line in sys.stdin.read().splitlines() if line]
    return [setting for override in overrides for setting in (lines if override == "-" else [override])]


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="change a setting: --set repair.epochs=3 (repeatable); -: lines of standard input, which no list of processes shows",
        callback=_from_input,
    ),
]
# Limits, as in the section `verify` of the settings.
MaxGreedy = Annotated[float | None, typer.Option("--max-greedy", help="share of spans that greedy decoding reproduces")]
MaxLeak100 = Annotated[
    float | None, typer.Option("--max-leak100", help="probability that 100 samples reproduce a span")
]
MaxAboveControl = Annotated[
    float | None,
    typer.Option("--max-leak100-above-control", help="the same, less that of identifiers no training ever saw"),
]
MaxUtilityLoss = Annotated[
    float | None, typer.Option("--max-utility-loss", help="rise of perplexity on held-out documents, 0.05: 5 %")
]
MaxGeneralLoss = Annotated[float | None, typer.Option("--max-general-loss", help="rise of perplexity on general text")]
MinCopying = Annotated[
    float | None, typer.Option("--min-copying", help="share of copying from the prompt that must be left, 0.9: 90 %")
]
MaxPlausibilityShift = Annotated[
    float | None,
    typer.Option(
        "--max-plausibility-shift", help="change of log-probability of identifiers no training saw, 0.15: 15 %"
    ),
]
# Exit code of `verify`; the others are those of errors.
LIMIT_MISSED = 1
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="weights may be in .bin files: sets model.allow_pickle")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help=f"what the file leaves out: {', '.join(PRESETS)}; default: its `preset`, else {DEFAULT_PRESET}"
    ),
]
# Of commands that train nothing: the preset that asks nothing of model or text.
NO_TRAINING = "paper"


@app.command()
def run(
    config: ConfigFile, out: OutFolder = Path("run"), overrides: Overrides = None, preset: Preset = None,
    allow_pickle: AllowPickle = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="stop before any rank starts; a launcher goes on (see launch/)")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, load no weights, print what would happen")] = False,
) -> None:  # fmt: skip
    """Audit, erase, repair, audit again, export.

    Example: `sani-dist run hospital.yaml --preset strong --set cluster.workers=2 --out run`
    """
    settings = load_config(config, _with(overrides, allow_pickle), preset)
    if dry_run:
        _describe(settings)
    elif prepare_only:
        from sani_dist import api
        from sani_dist.terminal import ProgressView, corpus_table

        with ProgressView(console) as view:
            prepared = api.prepare(settings, out, on_event=view)
        console.print(corpus_table(prepared))
    else:
        _sanitize(settings, out)


@app.command()
def resume(
    folder: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="change a `cluster` setting: --set cluster.workers=4 (repeatable)", callback=_from_input
        ),
    ] = None,
) -> None:
    """Go on with a run that was stopped: finished stages are skipped, repair goes on from its last checkpoint.

    Example: `sani-dist resume run --set cluster.workers=4`
    """
    from sani_dist import api
    from sani_dist.terminal import ProgressView

    with ProgressView(console) as view:
        finished = api.resume(folder, cluster=cluster_changes(overrides or []), on_event=view)
    _show(finished.folder)


@app.command()
def audit(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of any Hugging Face causal language model")],
    corpus: Annotated[Path, typer.Option("--corpus", help="settings file; only its section `corpus` and `audit` are used")],
    out: OutFolder = Path("audit-run"), overrides: Overrides = None, allow_pickle: AllowPickle = False,
) -> None:  # fmt: skip
    """Measure what an attacker can extract from a model; changes nothing.

    Example: `sani-dist audit ./model --corpus hospital.yaml --out audit-run`
    """
    from sani_dist import api

    overrides = ["model.adapter=null", *_with(overrides, allow_pickle)]
    settings = load_config(corpus, [*overrides, f"model.path={model.resolve()}", "erase.layers=0"], NO_TRAINING)
    _sanitize(settings, out, api.AUDIT_STAGES)


@app.command()
def attack(
    target: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="folder of a finished run, or of a Hugging Face model")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="with a model: settings file; its sections `corpus`, `audit` and `attack` are used")
    ] = None,
    out: OutFolder = Path("attack-run"),
    gold: Annotated[Path | None, typer.Option("--gold", help="a model that never saw the sensitive text, to compare with")] = None,
    overrides: Overrides = None,
) -> None:  # fmt: skip
    """What an attacker with the weights gets out or reads inside: prompts, statements, logit lens, probes, quantisation, drift, relearning.

    Changes no model.

    Example: `sani-dist attack run --set attack.relearn_grid=full`
    """
    from sani_dist import api
    from sani_dist.terminal import ProgressView

    chosen = [*(overrides or []), *([] if gold is None else [f"attack.gold={gold.resolve()}"])]
    if corpus is not None:
        chosen = ["model.adapter=null", *chosen, f"model.path={target.resolve()}", "erase.layers=0"]
        settings = load_config(corpus, chosen, NO_TRAINING)
        _sanitize(settings, out, api.ATTACK_STAGES)
        return
    if not (target / "run.json").exists():
        raise InputError(f"{target} is no run folder; for a model, name the text it is judged on: --corpus CONFIG")
    with ProgressView(console) as view:
        api.attack(target, changes=changes_of(chosen, ("attack", "cluster")), on_event=view)
    _show(target)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sweep() -> None:
    """Removed in 0.2.0."""
    raise InputError("sweep was removed in 0.2.0: loop over `sani-dist run --set ...`, and see `sani-dist compare`")


@app.command()
def erase(
    config: ConfigFile, out: OutFolder = Path("erased"), overrides: Overrides = None, preset: Preset = None,
    allow_pickle: AllowPickle = False,
) -> None:  # fmt: skip
    """Only erase: reset neurons and export; every untouched tensor stays as it was, byte for byte.

    Example: `sani-dist erase hospital.yaml --set erase.layers=4 --out erased`
    """
    from sani_dist import api

    _sanitize(load_config(config, [*_with(overrides, allow_pickle), "repair={}"], preset), out, api.ERASE_STAGES)


@app.command()
def repair(
    config: ConfigFile, out: OutFolder = Path("repaired"), overrides: Overrides = None, preset: Preset = None,
    allow_pickle: AllowPickle = False,
) -> None:  # fmt: skip
    """Only repair: fine-tune with sensitive tokens left out of the loss, and export. Nothing is erased.

    Example: `sani-dist repair hospital.yaml --set repair.epochs=1 --out repaired`
    """
    from sani_dist import api

    _sanitize(load_config(config, [*_with(overrides, allow_pickle), "erase.layers=0"], preset), out, api.REPAIR_STAGES)


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="folder of the model that the adapter was trained on")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="folder of the LoRA adapter")],
    out: Annotated[Path, typer.Option("--out", "-o", help="new folder of the merged model")] = Path("merged"),
) -> None:
    """Merge a LoRA adapter into its base, to be sanitised as one model.

    Example: `sani-dist merge ./base ./adapter --out merged`
    """
    from sani_dist import lora

    lora.merge(base, adapter, out)
    console.print(f"merged model: {plain(out)}", soft_wrap=True)


@app.command()
def detect(
    config: ConfigFile, out: OutFolder = Path("detected"), overrides: Overrides = None,
    review: Annotated[bool, typer.Option("--review", help="write corpus/review.csv, which shows the values, to be corrected")] = False,
    review_as: Annotated[
        str | None, typer.Option("--review-as", help="the same for a tool: label-studio, doccano, brat, spacy, conll, i2b2")
    ] = None,
) -> None:  # fmt: skip
    """Only find what is sensitive; prints kinds and counts. What was corrected is fed back as `corpus.spans: review.csv`.

    Example: `sani-dist detect hospital.yaml --review --out detected`
    """
    from sani_dist import api
    from sani_dist.corpus.review import TABLE, check_tool, review_table
    from sani_dist.terminal import corpus_table

    check_tool(review_as or TABLE)
    found = _execute(load_config(config, overrides, NO_TRAINING), out, ("prepare",), api)
    console.print(corpus_table(found))
    if review or review_as:
        path = review_table(out, review_as or TABLE)
        console.print(f"To correct: {plain(path)} (shows sensitive values; for its owner alone)", soft_wrap=True)


@app.command()
def canaries(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="the text, as `corpus.source` takes it")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the text with canaries (JSONL); train on this")],
    control: Annotated[Path, typer.Option("--control", help="as many codes that are put nowhere (JSONL), for `corpus.control`")],
    count: Annotated[int, typer.Option(min=1, help="how many codes")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="documents that each code is put into")] = 1,
    seed: Annotated[int, typer.Option(help="the same seed gives the same codes")] = 0,
    text: Annotated[str, typer.Option("--text", help="column of the text")] = "text",
    spans: Annotated[str, typer.Option("--spans", help="column that labels are read from and written to")] = "spans",
) -> None:  # fmt: skip
    """Put random codes into a text before a model is trained on it: the audit then tells exactly how well it learnt them by heart.

    Example: `sani-dist canaries notes.jsonl --out with-canaries.jsonl --control no-canaries.jsonl --count 16`
    """
    from sani_dist.corpus.canaries import write_canaries

    write_canaries(source, out, control, count=count, repeats=repeats, seed=seed, text=text, spans=spans)
    console.print(f"{count} canaries in {plain(out)}; their control: {plain(control)}", soft_wrap=True)


@app.command()
def report(
    folder: RunFolder, max_greedy: MaxGreedy = None, max_leak100: MaxLeak100 = None,
    max_leak100_above_control: MaxAboveControl = None, max_utility_loss: MaxUtilityLoss = None, max_general_loss: MaxGeneralLoss = None,
    min_copying: MinCopying = None, max_plausibility_shift: MaxPlausibilityShift = None,
) -> None:  # fmt: skip
    """Write the report of a finished run again, for example with other limits.

    Example: `sani-dist report run --max-leak100 0.05`
    """
    from sani_dist import api

    limits = _given(
        max_greedy=max_greedy, max_leak100=max_leak100, max_leak100_above_control=max_leak100_above_control,
        max_utility_loss=max_utility_loss, max_general_loss=max_general_loss, min_copying=min_copying,
        max_plausibility_shift=max_plausibility_shift,
    )  # fmt: skip
    console.print(f"report: {plain(api.report(folder, limits))}", soft_wrap=True)


@app.command()
def verify(
    folder: RunFolder, max_greedy: MaxGreedy = None, max_leak100: MaxLeak100 = None,
    max_leak100_above_control: MaxAboveControl = None, max_utility_loss: MaxUtilityLoss = None, max_general_loss: MaxGeneralLoss = None,
    min_copying: MinCopying = None, max_plausibility_shift: MaxPlausibilityShift = None,
) -> None:  # fmt: skip
    """Does a finished run keep its limits? Exit code 0 or 1, and one line for each limit. Made for release pipelines.

    Each limit is tested on the bad end of a 95 % interval; too little evidence to tell counts as missed. Limits that are not given
    here are taken from the section `verify` of the run's settings.

    Example: `sani-dist verify run --max-leak100 0.05 --max-utility-loss 0.05`
    """
    from sani_dist import api

    limits = _given(
        max_greedy=max_greedy, max_leak100=max_leak100, max_leak100_above_control=max_leak100_above_control,
        max_utility_loss=max_utility_loss, max_general_loss=max_general_loss, min_copying=min_copying,
        max_plausibility_shift=max_plausibility_shift,
    )  # fmt: skip
    outcomes = api.verify(folder, limits)
    for outcome in outcomes:
        state = "[green]kept[/green]  " if outcome.passed else "[red]MISSED[/red]"
        console.print(f"{state} {outcome.title}: {plain(outcome.reason)}", soft_wrap=True, highlight=False)
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(LIMIT_MISSED)


@app.command()
def compare(
    first: RunFolder, second: Annotated[Path, typer.Argument(metavar="RUN", help="another run folder")]
) -> None:
    """Two runs side by side: what their models still give away, and what they lost.

    Example: `sani-dist compare run-paper run-strong`
    """
    from sani_dist import api
    from sani_dist.run import Run
    from sani_dist.terminal import audit_table

    audits = {}
    for folder in (first, second):
        opened = Run.open(folder)
        when = "after" if opened.path("audit", "after.json").exists() else "before"
        name = str(folder) if str(folder) not in audits else f"{folder} (2)"
        audits[f"{name}, {when}"] = api.measurements(opened, when)
    console.print(audit_table(audits, "Two runs"))


@app.command()
def purge(folder: RunFolder) -> None:
    """Remove what a run left with sensitive content: text, tokens, checkpoints, key. Model, audits and plan stay.

    Example: `sani-dist purge run`
    """
    from sani_dist.purge import purge as remove

    removed = remove(folder)
    console.print("removed: " + (", ".join(map(plain, removed)) if removed else "nothing was left"))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="also compare with what this run needs")
    ] = None,
) -> None:
    """What is installed, which accelerator, free disk and memory, which DeepSpeed ops build, whether two ranks can talk.

    Example: `sani-dist doctor hospital.yaml`
    """
    from sani_dist.doctor import examine

    if not examine(console, None if config is None else load_config(config)):
        raise typer.Exit(InputError.exit_code)


@app.command()
def settings(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="such as corpus, repair or repair.objectives; default: all"),
    ] = None,
) -> None:
    """Every setting of a settings file: its type, default and meaning.

    Example: `sani-dist settings repair`
    """
    from sani_dist.settings_reference import settings as of_section

    for name, kind, default, description in of_section(section):
        console.print(f"[bold]{plain(name)}[/bold]  {plain(kind)}, default {plain(default)}", highlight=False)
        console.print(f"    {plain(description)}", highlight=False)


@app.command()
def plan(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="config.json of a model, or its folder; weights need not be there")],
    gpus: Annotated[int, typer.Option(min=1, help="how many, over all nodes")],
    gpu: Annotated[str, typer.Option(help="a100, h100, h200 or b200")],
    row_length: Annotated[int, typer.Option(min=16, help="corpus.row_length")] = 512,
    micro_rows: Annotated[int, typer.Option(min=1, help="repair.micro_rows")] = 1,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="repair.batch_rows; default: one micro-batch on each GPU")] = None,
    ds_config: Annotated[Path | None, typer.Option(help="a DeepSpeed file of your own, beside those of ds_configs/")] = None,
    tokens: Annotated[float, typer.Option(min=1, help="of the text, times the epochs")] = 1e8,
) -> None:  # fmt: skip
    """Memory of each GPU, GPU-hours of repair, and which ds_config fits, before any GPU is paid for. Loads no weights.

    Example: `sani-dist plan ./model --gpus 64 --gpu h100`
    """
    from sani_dist.capacity import GPUS, Job, estimate, read_shape, show, supplied
    from sani_dist.engine.zero3 import read_ds_config

    if gpu not in GPUS:
        raise InputError(f"--gpu: expected one of {', '.join(GPUS)}")
    shape = read_shape(model, row_length, micro_rows)
    if ds_config is not None:
        read_ds_config(ds_config, shape.dtype)
    job = Job(GPUS[gpu], gpus, batch_rows or gpus * micro_rows)
    estimates = [estimate(shape, job, path) for path in [*supplied(), *([ds_config] if ds_config else [])]]
    show(console, shape, job, estimates, tokens)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="new folder for the demo")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="of the notes, the training and the erasing")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="ZeRO-3 ranks; default: one for each GPU, or 2 without any")
    ] = None,
    canaries: Annotated[int, typer.Option(min=0, help="random codes put into as many of the 48 notes")] = 0,
) -> None:
    """A model that has memorised synthetic clinical notes, sanitised: about twelve minutes on two cores.

    Example: `sani-dist demo --out demo-run`
    """
    from sani_dist.engine.devices import choose, gpus

    workers = workers or (gpus() if choose("auto") else 2)
    finished = _clinic()(out, seed, workers, console, canaries)
    _show(finished.folder)


def _clinic() -> Any:
    """What tells the demo. It is an example of the repository, not a part of the package."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / "examples" / "clinic").is_dir():
        raise InputError("demo: it is not in the installed package; clone the repository, and run `make demo` there")
    sys.path.insert(0, str(repository))
    from examples.clinic.demo import tell

    return tell


def _sanitize(settings: Config, out: Path, stages: tuple[str, ...] | None = None) -> None:
    from sani_dist import api

    _execute(settings, out, stages, api)
    _show(out)


def _execute(settings: Config, out: Path, stages: tuple[str, ...] | None, api: Any) -> Any:
    from sani_dist.terminal import ProgressView

    with ProgressView(console) as view:
        return api.sanitize(settings, out, stages=stages, on_event=view)


def _given(**limits: float | None) -> dict[str, float]:
    return {name: limit for name, limit in limits.items() if limit is not None}


def _show(folder: Path) -> None:
    """What a finished run found, and where its results lie."""
    from sani_dist import api
    from sani_dist.run import Run
    from sani_dist.terminal import attack_table, audit_table, corpus_table, kinds_table

    finished = Run.open(folder)
    console.print(corpus_table(finished))
    audits = {
        w: api.measurements(finished, w) for w in ("before", "after") if finished.path("audit", f"{w}.json").exists()
    }
    if audits:
        console.print(audit_table(audits), kinds_table(audits))
        if results := api.attacks(finished):
            console.print(attack_table(results))
            console.print(plain(api.regime(finished)), highlight=False)
        if broken := api.not_finite(finished):
            console.print(
                f"[red]broken:[/red] {broken} of the model's scores are not finite numbers; every limit is missed",
                soft_wrap=True,
            )
        console.print(f"measurements: {plain(folder / 'audit')}", soft_wrap=True)
    page = finished.path("report", "index.html")
    if page.exists():
        console.print(f"report: {plain(page)}", soft_wrap=True)
    if finished.path("model").exists():
        console.print(f"sanitised model: {plain(folder / 'model')}", soft_wrap=True)


def _with(overrides: list[str] | None, allow_pickle: bool) -> list[str]:
    return [*(overrides or []), *(["model.allow_pickle=true"] if allow_pickle else [])]


def _describe(settings: Config) -> None:
    from sani_dist import orchestrate
    from sani_dist.stages import preflight

    orchestrate.check_ranks(settings.cluster)
    found = preflight.check(settings)
    erase, repair, workers = settings.erase, settings.repair, settings.cluster.most_workers
    console.print(
        f"model    {plain(found['architecture'])}, {found['parameters']:,} parameters, {found['layers']} layers"
    )
    console.print(
        f"loading  {'streamed, each rank its byte ranges' if found['streamed'] else 'through transformers, whole on each rank'}"
    )
    for note in found["notes"]:
        console.print(f"note     {note}", soft_wrap=True, highlight=False, markup=False)
    chosen = f"{found['neurons_reset']:,} MLP neurons and {found['heads_reset']:,} heads of the last {erase.layers} layers, {erase.select}"
    what = "every parameter" if erase.begins_at_base else chosen
    console.print(f"erase    {what}, reset: {erase.reset}")
    learnt = _objectives(repair.objectives)
    console.print(
        f"repair   {repair.epochs:g} epochs, {repair.batch_rows} rows a step, {repair.retain:.0%} general text, {learnt}"
    )
    console.print(
        f"cluster  {workers} workers, about {found['training_bytes'] / workers / 1e9:.1f} GB each for weights, gradients and optimizer"
    )
    console.print(f"disk     up to {found['disk_bytes'] / 1e9:.1f} GB for checkpoints and the model")
    console.print("the settings are good; without --dry-run the run would start")


def _objectives(chosen: Objectives) -> str:
    """Those that are on."""
    named = [name for name, value in chosen if value and name not in ("floor", "kl_top", "reference")]
    return ", ".join(named) or "sensitive tokens left out"


def main() -> None:
    """Entry point: errors become one line and an exit code (2 bad input, 3 a run that can be resumed)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except SaniError as error:
        Console(stderr=True).print(f"[red]error:[/red] {plain(error)}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except Exception as error:
        print(trace(error), file=sys.stderr)
        print(
            "error: this should not have happened; the lines above say where, and hold nothing of your data",
            file=sys.stderr,
        )
        sys.exit(SaniError.exit_code)


if __name__ == "__main__":
    main()
