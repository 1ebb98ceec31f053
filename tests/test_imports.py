"""How the modules of the package import one another: in no circle, also not inside functions, and never upwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sani_dist

PACKAGE = Path(sani_dist.__file__).parent
MODULES = {
    ".".join(("sani_dist", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(body: list[ast.stmt]) -> Iterator[str]:
    """Modules of ours that statements import, at whatever depth, but for those of type checkers."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        for block in ("body", "orelse", "finalbody", "handlers"):
            yield from imports(
                [inner for inner in getattr(node, block, []) if isinstance(inner, ast.stmt | ast.ExceptHandler)]
            )  # type: ignore[list-item]


GRAPH = {name: set(imports(ast.parse(path.read_text()).body)) - {name} for name, path in MODULES.items()}


def test_no_module_imports_itself_over_others() -> None:
    order = list(TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the circle
    assert order.index("sani_dist.errors") < order.index("sani_dist.pipeline") < order.index("sani_dist.cli")


def test_what_lies_below_imports_nothing_of_ours_from_above() -> None:
    kernels = {name for name in GRAPH if name.startswith("sani_dist.kernels")}
    assert {to for name in kernels for to in GRAPH[name]} <= kernels
    assert GRAPH["sani_dist.engine.deepspeed_internals"] == set()
    assert GRAPH["sani_dist.engine.shards"] == {"sani_dist.engine.deepspeed_internals"}
