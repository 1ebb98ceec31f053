"""Every setting with its type, default and description, from the models of `config.py`: `sani-dist settings` and docs/settings.md."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sani_dist.config import Config, Settings
from sani_dist.errors import InputError

_PLAIN = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
    Any: "any",
}


class Setting(NamedTuple):
    """name: as in YAML, `corpus.detect[presidio].entities` for an entry of a list. default: "required" where there is none."""

    name: str
    type: str
    default: str
    description: str


def settings(section: str | None = None) -> list[Setting]:
    """All settings, or those of one section, such as `repair` or `repair.objectives`, in the order of `config.py`.

    Raises InputError for a section that does not exist.
    """
    found = list(_of_model(Config, ""))
    if section is None:
        return found
    chosen = [s for s in found if s.name == section or s.name.startswith((f"{section}.", f"{section}["))]
    if not chosen:
        sections = ", ".join(Config.model_fields)
        raise InputError(
            f"settings: no section of that name; expected one of {sections}, or a part such as repair.objectives"
        )
    return chosen


def markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of a settings file, by section. `sani-dist settings SECTION` prints the same. This page is made from",
        "`sani_dist/config.py` by `python -m sani_dist.settings_reference > docs/settings.md`; a test compares them.",
    ]
    for name, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        lines += [
            "",
            f"## {name}",
            "",
            (model.__doc__ or "").strip(),
            "",
            "| setting | type | default | |",
            "|---|---|---|---|",
        ]
        for setting in settings(name):
            cells = (f"`{setting.name}`", setting.type, f"`{setting.default}`", setting.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _of_model(model: type[BaseModel], place: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        here = f"{place}.{name}" if place else name
        nested = [m for m in _models(field.annotation) if m is not model]
        if not _is_a_list(field.annotation) and len(nested) == len(_options(field.annotation)) == 1:
            yield from _of_model(nested[0], here)  # a section, that is there whether it is named or not
            continue
        description = field.description or ((model.__doc__ or "") if name == "name" else "")
        yield Setting(here, _type(field.annotation), _default(field), description)
        for entry in nested:
            tag = _tag(entry)
            yield from _of_model(entry, f"{here}[{tag}]" if _is_a_list(field.annotation) else here)


def _options(annotation: Any) -> list[Any]:
    """What a union allows; else the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _models(annotation: Any) -> list[type[Settings]]:
    """Models of settings within a type, those of a list's entries too."""
    found: list[type[Settings]] = []
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Settings):
            found.append(option)
        elif get_origin(option) is tuple:
            found += [m for part in get_args(option) if part is not Ellipsis for m in _models(part)]
    return found


def _is_a_list(annotation: Any) -> bool:
    return any(get_origin(option) is tuple for option in _options(annotation))


def _tag(model: type[Settings]) -> str:
    """Of the entries of a list: their `name`, where they are told apart by it."""
    name = model.model_fields.get("name")
    return str(get_args(name.annotation)[0]) if name is not None and get_origin(name.annotation) is Literal else ""


def _type(annotation: Any) -> str:
    return " or ".join(dict.fromkeys(_one_type(option) for option in _options(annotation)))


def _one_type(option: Any) -> str:
    if option in _PLAIN:
        return _PLAIN[option]
    origin, arguments = get_origin(option), get_args(option)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        if Ellipsis in arguments:
            return f"list of {_type(arguments[0])}"
        return "[" + ", ".join(_type(argument) for argument in arguments) + "]"
    return "mapping"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    return _shown(value)


def _shown(value: Any) -> str:
    """As YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-")
    return str(value)


if __name__ == "__main__":
    print(markdown(), end="")
