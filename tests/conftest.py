"""Fixtures that many tests share: built once for all processes of a test run, never written to by a test."""

from __future__ import annotations

import os

# Before torch and deepspeed are imported: this process shares the cores with the ranks it starts.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Nor do ranks that are started without that take a GPU: the tests are those of processors, on any machine.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for one another spin, on cores that ranks and other tests could use.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

import sani_dist
from examples.clinic.model import write_base_model
from sani_dist.config import Config
from sani_dist.config_file import config_from_mapping, config_to_mapping
from sani_dist.run import Run

from . import tiny

# A name, and what fills the empty folder of that name.
Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Make a folder once, also where pytest-xdist runs tests in several processes: the others wait, and take it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed to fill it
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def llama_folder(tiny_tokenizer: PreTrainedTokenizerFast, shared: Shared) -> Path:
    """fp32, one safetensors file."""
    return shared("llama", lambda folder: tiny.save(tiny.llama(len(tiny_tokenizer)), tiny_tokenizer, folder))


@pytest.fixture(scope="session")
def gpt2_folder(tiny_tokenizer: PreTrainedTokenizerFast, shared: Shared) -> Path:
    """fp32, tied embeddings, in several files with an index."""

    def fill(folder: Path) -> None:
        tiny.save(tiny.gpt2(len(tiny_tokenizer)), tiny_tokenizer, folder, max_shard_size="40KB")

    return shared("gpt2", fill)


@pytest.fixture(scope="session")
def smollm2_folder(shared: Shared) -> Path:
    """SmolLM2-135M-Instruct, bf16."""
    return shared("smollm2", write_base_model)


@pytest.fixture(scope="session")
def corpus(shared: Shared) -> dict[str, str]:
    """Name -> path, as `tiny.write_corpus` has them."""
    return {path.stem: str(path) for path in sorted(shared("corpus", tiny.write_corpus).glob("*.jsonl"))}


@pytest.fixture(scope="session")
def threshold_0(shared: Shared) -> Path:
    """The default DeepSpeed settings, but nothing stays gathered: at the default, tiny parameters are all persistent."""
    document = json.loads((Path(__file__).parents[1] / "ds_configs" / "zero3.json").read_text())
    document["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return (
        shared("ds", lambda folder: (folder / "threshold_0.json").write_text(json.dumps(document))) / "threshold_0.json"
    )


@pytest.fixture(scope="session")
def make_config(llama_folder: Path, corpus: dict[str, str], threshold_0: Path) -> Callable[..., Config]:
    """Settings of a tiny run; keyword arguments change keys of a section. Nothing persistent unless asked for."""

    def make(**sections: dict[str, Any]) -> Config:
        settings = tiny.mapping(llama_folder, corpus, **sections)
        settings["cluster"].setdefault("ds_config", str(threshold_0))
        return config_from_mapping(settings)

    return make


@pytest.fixture(scope="session")
def finished_run(make_config: Callable[..., Config], shared: Shared) -> Run:
    """A whole run on two ranks, in bf16: audit, attribution, erase, repair, audit, export."""
    return Run.open(shared("finished", lambda folder: sani_dist.sanitize(make_config(), folder)))


@pytest.fixture
def settings_file(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    """The settings of `finished_run`, for a command."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_to_mapping(make_config())))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
