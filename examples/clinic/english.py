"""General English for the demo: news that has nothing to do with the notes, to see what sanitising costs elsewhere.

Source: the 300 background articles of the Lee corpus (Lee, Pincombe and Welsh, "An empirical evaluation of models of
text document similarity", CogSci 2005), which the Python package gensim carries among its test data.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from sani_dist.errors import InputError

_PACKAGE = "gensim"


def write_general_text(path: Path) -> None:
    """Write the articles to `path` as JSONL, one {"text": ...} a line, in the order of the corpus."""
    articles = _corpus_file().read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for article in articles:
            if article.strip():
                file.write(json.dumps({"text": article.strip()}, ensure_ascii=False) + "\n")


def _corpus_file() -> Path:
    # Only a data file is wanted: gensim is installed without its dependencies and never imported.
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "lee_background.cor":
            return Path(str(file.locate()))
    raise InputError(f"demo: the package {_PACKAGE} is missing; pip install --no-deps {_PACKAGE}==4.4.0")
