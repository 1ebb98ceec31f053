"""Medical records of another generator and layout than the demo's notes, with labelled identifiers: people and text of `clinosim`.

    pip install -c constraints.txt -e '.[bench]'

A record is who the patient is and how to reach them, then what was written of one to three encounters. No two records of one seed share a
name, a home or a number, so disjoint slices give text to train on, a control, and held-out documents.
"""

from __future__ import annotations

import html
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from examples.clinic.identities import Fields, Identifier
from examples.clinic.notes import Note

# People of the simulated town for each record: some share a home, some never see a doctor.
PEOPLE = 5
LAST_DAY = "2026-06-30"
ENCOUNTERS = (
    "Discharge summary note",
    "History and physical note",
    "Emergency medicine Note",
    "Outpatient Progress note",
)
# About two records to a row of the demo.
MOST_CHARACTERS, MOST_ENCOUNTERS = 1000, 3
HEADS = (
    "{name}\nDOB {born} | {sex} | member no. {member}\n{street}, {city}, {state} {code}\nTel. {phone}\nNotify in emergency: {contact}\n",
    "MEDICAL RECORD\nName of patient: {name} ({sex}), born {born}\nContact person: {contact}\nTelephone {phone}; resides at {street} in "
    "{city}, {state} {code}\nInsured as {member}\n",
)
# Kinds of which two patients may have the same value.
SHARED = ("DATE_TIME", "LOCATION")
ENCOUNTER = "\n{date} - {title}\n{text}\n"


def write_records(paths: Sequence[Path], count: int, seed: int) -> None:
    """Write `count` records to each of `paths`: JSONL with `text`, `patient` and `spans`, as the demo's notes have them."""
    with tempfile.TemporaryDirectory() as name:
        _simulate(Path(name), PEOPLE * count * len(paths), seed)
        found = list(itertools.islice(_records(Path(name) / "fhir_r4"), count * len(paths)))
    if len(found) < count * len(paths):
        raise SystemExit(f"only {len(found)} records without a shared identifier: raise PEOPLE")
    for number, path in enumerate(paths):
        path.write_text("".join(found[number * count : (number + 1) * count]), encoding="utf-8")


def _simulate(folder: Path, people: int, seed: int) -> None:
    words = ["simulate", "--country", "US", "--population", str(people), "--seed", str(seed), "--end", LAST_DAY]
    command = [sys.executable, "-m", "clinosim.simulator.cli", *words, "--output", str(folder), "--format", "fhir-r4"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _records(folder: Path) -> Iterator[str]:
    """A JSON line for each patient who shares nothing with those before."""
    members = {r["beneficiary"]["reference"]: r["subscriberId"] for r in _resources(folder / "Coverage.ndjson")}
    encounters = defaultdict(list)
    for composition in _resources(folder / "Composition.ndjson"):
        if composition["title"] in ENCOUNTERS:
            encounters[composition["subject"]["reference"]].append(composition)
    seen: set[str] = set()
    for number, patient in enumerate(_resources(folder / "Patient.ndjson")):
        reference = f"Patient/{patient['id']}"
        if reference not in members or not encounters[reference] or not patient.get("contact"):
            continue
        identity = _identity(patient, members[reference])
        unique = {v.value for v in identity.values() if isinstance(v, Identifier) and v.kind not in SHARED}
        if seen & unique:
            continue
        seen |= unique
        note = Note()
        note.write(HEADS[number % len(HEADS)], identity)
        chosen = sorted(encounters[reference], key=lambda c: (ENCOUNTERS.index(c["title"]), c["date"]))
        for composition in chosen[:MOST_ENCOUNTERS]:
            text, room = _text(composition), max(0, MOST_CHARACTERS - len(note.text))
            if len(text) > room:
                text = text[:room].rpartition("\n")[0]
            if text:
                date = Identifier(composition["date"][:10], "DATE_TIME", "indirect")
                note.write(ENCOUNTER, {"date": date, "title": composition["title"], "text": text})
        yield json.dumps({"text": note.text, "patient": patient["id"], "spans": note.spans}) + "\n"


def _identity(patient: dict[str, Any], member: str) -> Fields:
    name, home = patient["name"][0], patient["address"][0]
    return {
        "name": Identifier(f"{name['given'][0]} {name['family']}", "PERSON", "direct"),
        "contact": Identifier(patient["contact"][0]["name"]["text"], "PERSON", "direct"),
        "born": Identifier(patient["birthDate"], "DATE_TIME", "indirect"),
        "member": Identifier(member, "INSURANCE_NUMBER", "direct"),
        "street": Identifier(home["line"][0], "ADDRESS", "direct"),
        "city": Identifier(home["city"], "LOCATION", "indirect"),
        "phone": Identifier(patient["telecom"][0]["value"], "PHONE_NUMBER", "direct"),
        "sex": patient["gender"],
        "state": home["state"],
        "code": home["postalCode"],
    }


def _text(composition: dict[str, Any]) -> str:
    """Its sections, a line each, without the markup."""
    sections = ((s["title"], html.unescape(re.sub("<[^>]+>", "", s["text"]["div"]))) for s in composition["section"])
    return "\n".join(f"{title}: {text}" for title, text in sections)


def _resources(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
