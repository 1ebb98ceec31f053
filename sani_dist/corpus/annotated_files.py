"""Files of annotation tools as rows {text, spans}: brat standoff, CoNLL, i2b2 XML, Label Studio, spaCy.

Spans are left as the tool has them, in the words that `annotations.py` understands; it checks them against the text.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sani_dist.corpus.lines import read_text, text_lines
from sani_dist.errors import InputError

# T1<tab>KIND 0 5;8 12<tab>words of it
_BRAT = re.compile(r"T[^\t]*\t(\S+) ([0-9]{1,12} [0-9]{1,12}(?:;[0-9]{1,12} [0-9]{1,12})*)(?:\t(.*))?")
# A declaration of types could define entities, which grow without bound or name other files.
_DECLARES = re.compile(r"\s*(<\?.*?\?>\s*|<!--.*?-->\s*)*<!DOCTYPE", re.DOTALL)
_COMMENT = re.compile(r"#\s*(newdoc|newpar|sent_id|text|id)\b|#.*=")
_TAG = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_BEGINS, _CONTINUES = "BSU", "IELM"


def row_of_tool(value: Any) -> dict[str, Any] | None:
    """A record of JSON as columns; the labels of a Label Studio task or of a pair of spaCy become the column `spans`. None: no record."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        return {"text": value[0], "spans": value[1].get("entities")}
    if not isinstance(value, dict):
        return None
    data, annotations = value.get("data"), value.get("annotations", value.get("completions"))
    if isinstance(data, dict) and isinstance(annotations, list):
        # Those of several people count together: what one of them marked is protected.
        made = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
        results = [result for a in made for result in a.get("result") or ()]
        return {**data, "spans": [r for r in results if _is_label(r)] if made else None}
    return value


def _is_label(result: Any) -> bool:
    """Whether a result of Label Studio is a marked span: others are choices, ratings and relations."""
    value = result.get("value") if isinstance(result, dict) else None
    return isinstance(value, dict) and ("start" in value or str(result.get("type")).endswith("labels"))


def brat_spans(standoff: str, where: str) -> list[dict[str, Any]]:
    """The spans of an .ann file; a span in pieces becomes as many spans. Raises `InputError`."""
    spans = []
    for number, line in enumerate(standoff.splitlines(), 1):
        if not line.startswith("T"):  # relations, events, attributes and notes
            continue
        match = _BRAT.fullmatch(line)
        if match is None:
            raise InputError(f"{where}: line {number} of its .ann is no text-bound annotation of brat")
        kind, places, words = match.groups()
        for place in places.split(";"):
            start, end = map(int, place.split())
            spans.append({"start": start, "end": end, "kind": kind, "text": words[: end - start] if words else None})
            words = words and words[end - start + 1 :]
    return spans


def conll_rows(path: Path, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Documents of a CoNLL file: a token a line, its tag last. -DOCSTART- begins a document; where there is none, an empty line does."""
    by_marks = any(_starts_document(line) for _, line in text_lines(path, where))
    sentences: list[list[tuple[str, str]]] = [[]]
    number = 0
    for line_number, line in text_lines(path, where):
        starts = _starts_document(line)
        if starts or (not line.strip() and not by_marks):
            if row := _conll_row(sentences):
                number += 1
                yield number, row
            sentences = [[]]
        elif not line.strip():
            sentences.append([])
        elif "\t" in line or not _COMMENT.match(line):
            cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if len(cells) < 2:
                raise InputError(f"{where}: line {line_number} is not a token and its tag")
            sentences[-1].append((cells[0], cells[-1].strip()))
    if row := _conll_row(sentences):
        yield number + 1, row


def _starts_document(line: str) -> bool:
    return line.startswith(("-DOCSTART-", "# newdoc"))


def _conll_row(sentences: list[list[tuple[str, str]]]) -> dict[str, Any] | None:
    """Tokens with a space between them, sentences on lines of their own."""
    text, spans = "", list[dict[str, Any]]()
    for sentence in filter(None, sentences):
        text += "\n" if text else ""
        inside = None  # the kind of the span that the token before belongs to
        for i, (token, tag) in enumerate(sentence):
            text += " " if i else ""
            match = _TAG.fullmatch(tag)
            prefix, kind = match.groups() if match else ("I", tag)
            if tag in ("O", "_", ""):
                inside = None
            elif prefix in _CONTINUES and kind == inside:
                spans[-1]["end"] = len(text) + len(token)
            else:
                spans.append({"start": len(text), "end": len(text) + len(token), "kind": kind})
                inside = kind
            if prefix in "ELSU" and match:
                inside = None
            text += token
    return {"text": text, "spans": spans} if text else None


def i2b2_rows(path: Path, where: str) -> Iterator[dict[str, Any]]:
    """Records of an i2b2 file: of 2014 (TEXT, and TAGS with offsets) or of 2006 (RECORD, with PHI in the text). Raises `InputError`."""
    content = read_text(path, where)
    if _DECLARES.match(content):
        raise InputError(f"{where} declares a document type, which is not read; take the <!DOCTYPE> out")
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise InputError(f"{where} is not valid XML (line {error.position[0]})") from None
    names = {"file": path.name.encode("utf-8", "backslashreplace").decode(), "folder": path.parent.name}
    records = [root] if root.find("TEXT") is not None else list(root.iter("RECORD"))
    if not records:
        raise InputError(f"{where} has neither TEXT nor RECORD; expected the XML of i2b2")
    for record in records:
        body = record.find("TEXT")
        if body is None:
            raise InputError(f"{where} has a RECORD without TEXT")
        text, spans = _inline(body)
        tags = record.find("TAGS")
        spans += [_i2b2_span(tag, where) for tag in (tags if tags is not None else ())]
        yield {**names, "record": record.get("ID"), "text": text, "spans": spans}


def _inline(body: ET.Element) -> tuple[str, list[dict[str, Any]]]:
    text, spans = body.text or "", []
    for part in body:
        inner = "".join(part.itertext())
        if part.tag == "PHI":
            spans.append({"start": len(text), "end": len(text) + len(inner), "kind": part.get("TYPE")})
        text += inner + (part.tail or "")
    return text, spans


def _i2b2_span(tag: ET.Element, where: str) -> dict[str, Any]:
    try:
        start, end = int(tag.get("start", "")), int(tag.get("end", ""))
    except ValueError:
        raise InputError(f"{where}: a tag needs whole numbers `start` and `end`") from None
    return {"start": start, "end": end, "kind": tag.get("TYPE") or tag.tag, "text": tag.get("text")}
