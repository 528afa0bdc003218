"""The shape of the code and its tests: short functions, a test module for each, nothing patched."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.unit.source import JOBS, MODULES, TESTS, name_of, tree_of

MEDIAN, P90, MAX = 7, 18, 60
"""Lines of a function, signature and docstring included."""
PATCHED: set[str] = {
    "tests/unit/jobs/speech/test_pretrain.py",
}
"""Still to go."""


def lengths() -> list[int]:
    """Lines of each function, in order."""
    functions = (
        node
        for path in (*MODULES, *JOBS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return sorted((f.end_lineno or 0) - f.lineno + 1 for f in functions)


def test_functions_are_short() -> None:
    lines = lengths()
    assert statistics.median(lines) <= MEDIAN
    assert lines[len(lines) * 9 // 10] <= P90
    assert lines[-1] <= MAX


def patches(path: Path) -> Iterator[str]:
    """Calls that put something else in an object's place, and imports of what does so."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("setattr", "setitem", "delattr"):
            yield ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unittest"):
            yield ast.unparse(node)


def test_nothing_is_patched() -> None:
    assert {name_of(path) for path in TESTS if list(patches(path))} <= PATCHED
