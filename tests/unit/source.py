"""The source code as tests read it: its modules, and what they import."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted((ROOT / "orchestrator").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """``orchestrator/plan/keys.py``."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """``orchestrator.plan.keys``."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, at any depth of its code."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
