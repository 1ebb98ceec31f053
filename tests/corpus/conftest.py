"""A real byte-level BPE tokenizer, trained on the spot, and small helpers to write corpora."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TRAINING_TEXT = [
    "The patient John Smith was seen on the ward and the record says nothing new.",
    "Dr Jones wrote: the results of the patient are normal, and he was sent home.",
    "Please call 555-0134 or write to the office about the record of the patient.",
]
KEY = b"k" * 32


def byte_level_tokenizer(trim_offsets: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write records (dicts, or texts) to a JSONL file and return its path."""

    def write(records: Iterable[dict[str, Any] | str], name: str = "corpus") -> str:
        path = tmp_path / f"{name}.jsonl"
        rows = (record if isinstance(record, dict) else {"text": record} for record in records)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
