"""Tasks of the LM Evaluation Harness on two ranks, against the harness's own model of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sani_dist.audit.harness import check_tasks
from sani_dist.config import HarnessSettings
from sani_dist.errors import InputError

from .ranks import run_ranks

TASKS = {
    "plans": {
        "output_type": "multiple_choice", "doc_to_text": "The patient has {{symptom}} and is given ",
        "doc_to_choice": "{{plans}}", "doc_to_target": "label", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "symptoms": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{symptom}} and {{plans[0]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
    "answers": {
        "output_type": "generate_until", "doc_to_text": "The patient has {{symptom}}", "doc_to_target": "{{plans[label]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 7, "do_sample": False},
        "metric_list": [{"metric": "bleu"}, {"metric": "exact_match"}],
    },
}  # fmt: skip
PLANS = ["rest and fluids", "an x-ray", "a blood test", "physiotherapy"]
SYMPTOMS = ["a cough", "a sore knee", "some fever", "back pain", "a headache", "poor sleep", "no appetite"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    lines = [{"symptom": s, "plans": PLANS[: 2 + i % 3], "label": i % 2} for i, s in enumerate(SYMPTOMS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test", **data, **task}))
    return folder


@pytest.mark.slow
def test_tasks_measure_what_the_harness_measures_itself(
    llama_folder: Path, threshold_0: Path, tasks: Path, tmp_path: Path
) -> None:
    run_ranks(
        2, "asked_by_harness", tmp_path, model=str(llama_folder), ds_config=str(threshold_0), tasks=list(TASKS),
        include=str(tasks),
    )  # fmt: skip
    found = {metric: numbers for metric, *numbers in json.loads((tmp_path / "harness.json").read_text())}
    alone = simple_evaluate(
        model=HFLM(pretrained=str(llama_folder), dtype="float32", device="cpu", batch_size=2), tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    compared = 0
    for task, numbers in alone["results"].items():
        for key, expected in numbers.items():
            metric = key.split(",")[0]
            if isinstance(expected, float) and not metric.endswith("_stderr"):
                value, low, high, count = found[f"harness:{task}:{metric}"]
                assert value == pytest.approx(expected, rel=1e-4), (task, metric)
                assert low is None or low <= value <= high
                assert count == len(SYMPTOMS)
                compared += 1
    assert compared == len(found) == 6


@pytest.mark.slow
def test_a_task_that_is_none_is_named(tasks: Path) -> None:
    check_tasks(HarnessSettings(tasks=("plans",), include=tasks))
    with pytest.raises(InputError, match=r"audit\.harness\.tasks: entry 1 is no task"):
        check_tasks(HarnessSettings(tasks=("plants",), include=tasks))
