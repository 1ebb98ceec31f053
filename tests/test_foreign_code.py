"""A model folder may bring Python code; it is never run, and nobody is asked whether it should be."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import sani_dist
from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping

from .watching import COMMAND

PACKAGE = Path(sani_dist.__file__).parent


def loads(tree: ast.AST) -> list[ast.Call]:
    """What builds something of transformers from a folder; an adapter of peft has no code."""
    return [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config")
        and ast.unparse(call.func.value) != "PeftModel"
    ]


def test_every_load_says_that_no_code_is_run() -> None:
    found = {path: loads(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    calls = [(path, call) for path, of_file in found.items() for call in of_file]
    assert len(calls) >= 7
    for path, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_is_not_run_whatever_is_answered(
    make_config: Callable[..., Config], llama_folder: Path, tmp_path: Path, file: str
) -> None:
    model, ran = Path(shutil.copytree(llama_folder, tmp_path / "model")), tmp_path / "ran"
    (model / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').write('x')\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class C(PretrainedConfig): model_type = 'evil'\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    of_file = {
        "config.json": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}},
        "tokenizer_config.json": {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}},
    }
    (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **of_file[file]}))
    settings = config_to_mapping(make_config(model={"path": str(model)}))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = [
        *COMMAND,
        "run",
        str(tmp_path / "run.yaml"),
        "--dry-run",
    ]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, check=False)
    assert not ran.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if file == "config.json":
        assert done.returncode == 2
        assert "it asks for code of its own, which is never run" in " ".join(done.stderr.split())
