"""Settings: what is read, and the one line that a wrong one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sani_dist.config_file import config_from_mapping, config_to_mapping, load_config
from sani_dist.errors import InputError

GOOD: dict[str, Any] = {
    "model": {"path": "model"},
    "corpus": {"source": "notes.jsonl", "detect": [{"name": "terms", "values": ["Zyxwort"]}]},
}
SECRET = "Quackenbush"


def changed(dotted: str, value: Any) -> dict[str, Any]:
    mapping = yaml.safe_load(yaml.safe_dump(GOOD))
    place = mapping
    *keys, last = dotted.split(".")
    for key in keys:
        place = place.setdefault(key, {})
    place[last] = value
    return mapping


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("erase.fraction", 0, "erase.fraction: Input should be greater than 0"),
        ("erase.fraction", 1.01, "erase.fraction: Input should be less than or equal to 1"),
        ("erase.fraction", SECRET, "erase.fraction: Input should be a valid number"),
        ("erase.layers", -1, "erase.layers: "),
        ("erase.layers", 1.5, "erase.layers: "),
        ("erase.select", SECRET, "erase.select: Input should be 'random', 'attribution' or 'everything'"),
        ("erase.reset", SECRET, "erase.reset: Input should be 'init', 'zero' or 'base'"),
        ("erase.reset", "base", "erase.reset=base needs model.base"),
        ("erase.seed", -1, "erase.seed: "),
        (
            "erase.share",
            0.5,
            "erase.share: unknown key; known here: layers, fraction, select, relative_to",
        ),
        ("repair.epochs", -0.1, "repair.epochs: "),
        ("repair.retain", 1, "repair.retain: Input should be less than 1"),
        ("repair.retain", 0.5, "repair.retain needs corpus.general"),
        ("repair.look", True, "repair.look needs corpus.control"),
        ("repair.until_control", True, "repair.until_control needs corpus.control"),
        ("repair.batch_rows", 0, "repair.batch_rows: "),
        ("repair.learning_rate", 0, "repair.learning_rate: "),
        ("repair.learning_rate", float("inf"), "repair.learning_rate: Input should be a finite number"),
        ("repair.clip", float("nan"), "repair.clip: Input should be a finite number"),
        ("repair.checkpoint_every", 0, "repair.checkpoint_every: "),
        ("repair.schedule", "step", "repair.schedule: "),
        ("erase.relative_to", SECRET, "erase.relative_to: Input should be 'general', 'ordinary' or 'both'"),
        ("erase.integration_steps", 8, "erase.integration_steps was removed in 0.2.0: use `erase.select: attribution`"),
        (
            "tracking.to",
            ["tensorboard", "mlflow"],
            "tracking.to was removed in 0.2.0: curves for TensorBoard are always",
        ),
        ("tracking.project", SECRET, "tracking.project was removed in 0.2.0: TensorBoard needs none"),
        ("erase.budget", "global", "erase.budget was removed in 0.2.0: each layer loses the share `erase.fraction`"),
        (
            "erase.select",
            "integrated_gradients",
            "erase.select: integrated_gradients was removed in 0.2.0; use attribut",
        ),
        ("repair.objectives.floor", 0.1, "repair.objectives: `floor` is that of `unlikelihood`, which is 0"),
        ("erase", {"select": "everything"}, "erase: `select: everything` goes with `reset: base`"),
        ("erase", {"select": "everything", "reset": "base"}, "erase.reset=base needs model.base"),
        ("repair.objectives", {"reference": "base"}, "repair.objectives: `reference` is that of `aim`, which is 0"),
        ("repair.objectives", {"aim": 1, "reference": "base"}, "repair.objectives.reference=base needs model.base"),
        ("repair.objectives", {"aim": 1, "unlikelihood": 1}, "repair.objectives: `aim` draws sensitive tokens"),
        ("repair.objectives", {"aim": 1, "plain": True}, "repair.objectives: `plain` learns the true values"),
        ("repair.objectives.kl_top", 0, "repair.objectives.kl_top: Input should be greater than or equal to 1"),
        ("repair.objectives", {"plain": True, "kl": 1}, "repair.objectives: `plain` learns the true values"),
        ("repair.objectives", {"surrogate": "en_US", "kl": 1}, "repair: `objectives.kl` is on true and general text"),
        ("repair.objectives", {"plain": True, "unlikelihood": 1}, "repair.objectives: `plain` learns the true values"),
        ("repair.objectives.surrogate", SECRET, "repair.objectives: `surrogate` is no locale that faker knows"),
        ("repair.objective", "mask", "repair.objective: unknown key; known here: objectives, epochs"),
        ("cluster.workers", 0, "cluster.workers: expected how many, such as 4, or the least and the most"),
        ("cluster.workers", [3, 2], "cluster.workers: expected how many"),
        ("cluster.workers", SECRET, "cluster.workers: expected how many"),
        ("cluster.workers", [2, 3], "cluster: `workers`: the least and the most are for launcher: ray"),
        ("cluster.launcher", SECRET, "cluster.launcher: "),
        ("audit.samples", [0], "audit.samples.0: "),
        ("model.dtype", "float16", "model.dtype: Input should be 'bfloat16' or 'float32'"),
        ("model", None, "model: "),
        (
            "modle",
            {},
            "modle: unknown key; known here: model, corpus, erase, repair, audit, attack, verify, cluster",
        ),
        ("corpus.row_length", 8, "corpus.row_length: "),
        ("corpus.source", None, "corpus: needs `source`, or `general`"),
        ("corpus.detect", [], "corpus: needs at least one entry in `detect`"),
        (
            "corpus.detect",
            [{"name": SECRET}],
            "corpus.detect.0: name must be one of annotations, terms, presidio, rare_",
        ),
        ("corpus.detect", [{"name": [SECRET]}], "corpus.detect.0: name must be one of"),
        ("corpus.detect", [{"name": {SECRET: 1}}], "corpus.detect.0: name must be one of"),
        ("corpus.detect", [{"path": SECRET}], "corpus.detect.0: name must be one of"),
        ("corpus.detect", [SECRET], "corpus.detect.0: "),
        ("corpus.detect", {SECRET: 1}, "corpus.detect: "),
        ("corpus.detect", [{"name": "terms"}], "corpus.detect.0: needs `path`"),
        ("corpus.detect", [{"name": "terms", "values": SECRET}], "corpus.detect.0.values: "),
        ("corpus.detect", [{"name": "annotations"}], "corpus: `detect: annotations` needs `spans`"),
        ("corpus.detect", [{"name": "rare_terms"}], "corpus: `detect: rare_terms` needs `subject`"),
        ("corpus.detect", [{"name": "rare_terms", "subjects": 1}], "corpus.detect.0.subjects: "),
        ("corpus.detect", [{"name": "presidio", "score": 2}], "corpus.detect.0.score: "),
        ("corpus.target", {"subjects": [SECRET]}, "corpus: `target.subjects` needs `subject`"),
        ("corpus.target", {"values": SECRET}, "corpus.target.values: "),
        ("corpus.target", {"values": {SECRET: 1}}, "corpus.target.values: "),
        # A value in the place of a key.
        ("corpus.target", {f"{SECRET} Zebulon": 1}, "corpus.target.(a key): unknown key"),
        (SECRET, {}, "(a key): unknown key; known here: model, corpus"),
    ],
)
def test_a_wrong_setting_gives_one_line_that_names_the_field(dotted: str, value: Any, message: str) -> None:
    config_from_mapping(GOOD)
    with pytest.raises(InputError) as error:
        config_from_mapping(changed(dotted, value))
    line = str(error.value)
    assert message in line
    assert "\n" not in line
    assert SECRET not in line
    assert "Zyxwort" not in line
    assert error.value.exit_code == 2


def test_several_wrong_settings_are_counted() -> None:
    with pytest.raises(InputError, match=r"^erase.layers: .* \(and 1 more\)$"):
        config_from_mapping({**GOOD, "erase": {"layers": -1, "fraction": 2}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [\n", "is not YAML (line 2)"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- model", "expected keys such as model"),
        (b"", "expected keys such as model"),
        (b"preset: fast\nmodel: {path: a}", "preset: unknown; choose one of paper, balanced, strong"),
        (b"preset: [paper]\nmodel: {path: a}", "preset: unknown; choose one of paper, balanced, strong"),
    ],
)
def test_a_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nothing.yaml: No such file"):
        load_config(tmp_path / "nothing.yaml")


def test_overrides_win_over_the_file_and_the_file_over_the_preset(settings_file: Path) -> None:
    assert load_config(settings_file).repair.epochs == 1
    assert load_config(settings_file, preset="strong").repair.epochs == 3
    with settings_file.open("a") as stream:
        stream.write("erase: {fraction: 0.4}\ncluster: {workers: 3}\n")
    config = load_config(
        settings_file, ["erase.fraction=0.3", "repair.epochs=1", "audit.samples=[5, 6]"], preset="paper"
    )
    assert config.erase.fraction == 0.3
    assert config.erase.layers == 1
    assert (config.repair.epochs, config.audit.samples, config.cluster.workers) == (1, (5, 6), 3)
    assert load_config(settings_file, preset="paper").erase.fraction == 0.4


def test_the_file_may_name_its_preset(settings_file: Path) -> None:
    text = settings_file.read_text()
    settings_file.write_text("preset: paper\n" + text)
    erase = load_config(settings_file).erase
    assert (erase.layers, erase.fraction, erase.select, erase.reset) == (1, 0.5, "random", "init")
    assert load_config(settings_file, preset="strong").erase.select == "attribution"


@pytest.mark.parametrize(
    ("objectives", "texts"),
    [({}, (0, 0, 0)), ({"surrogate": "en_US"}, (1, 2, 3)), ({"surrogate": "de_DE", "unlikelihood": 0.5}, (0, 2, 0))],
)
def test_the_text_of_each_epoch(objectives: dict[str, Any], texts: tuple[int, ...]) -> None:
    """Numbers of folders in `tokens/`: only the true text has tokens to push down, only the others surrogates to learn."""
    chosen = config_from_mapping(changed("repair", {"epochs": 2.5, "objectives": objectives}))
    assert chosen.repair.text_of_epochs == texts


@pytest.mark.parametrize("override", ["erase.fraction", "=3", "erase.=3", ".a=3", ""])
def test_an_override_that_is_none(settings_file: Path, override: str) -> None:
    with pytest.raises(InputError, match=r"^--set: expected section.key=value"):
        load_config(settings_file, [override])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.path.folder=3", "--set model.path.folder: path is not a section"),
        ("erase.fraction=[", "--set erase.fraction: the value is not YAML"),
        (f"erase={{{SECRET}", "--set erase: the value is not YAML"),
        (f"corpus.target.values=[{SECRET}]: x", "--set corpus.target.values: the value is not YAML"),
        (f"corpus.target.values=!!python/name:{SECRET}", "--set corpus.target.values: the value is not YAML"),
        (f"corpus.source.{SECRET}=1", "--set corpus.source.(a key): source is not a section"),
        (f"erase.fraction: {SECRET}", "--set: expected section.key=value"),
        (f"erase.fraction={SECRET}", "erase.fraction: Input should be a valid number"),
        (f"corpus.detect=[{{name: {SECRET}}}]", "corpus.detect.0: name must be one of"),
        (f"corpus.target.values={SECRET}", "corpus.target.values: "),
        (f"corpus.target.{SECRET}=1", "corpus.target.(a key): unknown key"),
    ],
)
def test_an_override_that_does_not_fit(settings_file: Path, override: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(settings_file, [override])
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_paths_are_taken_from_the_folder_of_the_file(settings_file: Path) -> None:
    (settings_file.parent / "notes.jsonl").write_text("")
    config = load_config(settings_file, ["corpus.general=some/hub-id", "corpus.heldout=/absolute.jsonl"])
    assert config.model.path == settings_file.parent / "model"
    assert config.corpus.source == str(settings_file.parent / "notes.jsonl")
    assert config.corpus.general == "some/hub-id"
    assert config.corpus.heldout == "/absolute.jsonl"


def test_settings_that_every_run_of_the_last_version_wrote_are_read() -> None:
    """Its run folders hold every default: those of settings that are gone ask for nothing."""
    old = {
        **GOOD,
        "erase": {"layers": 2, "budget": "per_layer", "integration_steps": 5},
        "tracking": {"to": ["tensorboard"], "project": "sani_dist"},
    }
    assert config_from_mapping(old) == config_from_mapping({**GOOD, "erase": {"layers": 2}})
    assert "budget" in old["erase"]


def test_settings_survive_a_round_trip_through_yaml(settings_file: Path) -> None:
    config = load_config(settings_file, preset="paper")
    assert config_from_mapping(yaml.safe_load(yaml.safe_dump(config_to_mapping(config)))) == config
