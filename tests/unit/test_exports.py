"""The public names of the control plane, so that none appears or goes by accident."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def public_names(path: Path) -> Iterator[str]:
    """What a module defines at its top without an underscore, and the same of its classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for name in _defined(node):
            yield name
            if isinstance(node, ast.ClassDef):
                yield from (f"{name}.{member}" for part in node.body for member in _defined(part))


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.AnnAssign):
        names = [ast.unparse(node.target)]
    elif isinstance(node, ast.Assign):
        names = [ast.unparse(target) for target in node.targets]
    else:
        names = []
    return [name for name in names if not name.startswith("_") and name.isidentifier()]


def test_public_names(golden: Callable[[str, str], None]) -> None:
    modules = sorted((ROOT / "orchestrator").rglob("*.py"))
    lines = []
    for path in modules:
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        lines += [f"{module}: {name}" for name in public_names(path)]
    golden("exports.txt", "\n".join(lines) + "\n")
