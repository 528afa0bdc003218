"""Each module with code has a test module of its own, in the same place below tests/unit."""

from __future__ import annotations

import ast

from tests.unit.source import JOBS, MODULES, ROOT, name_of, tree_of

WITHOUT_A_TEST: set[str] = {
    "orchestrator/backends/base.py",
    "orchestrator/cli/cancel.py",
    "orchestrator/cli/chaos.py",
    "orchestrator/cli/doctor.py",
    "orchestrator/cli/export.py",
    "orchestrator/cli/plan.py",
    "orchestrator/cli/report.py",
    "orchestrator/cli/resume.py",
    "orchestrator/cli/status.py",
    "orchestrator/cli/submit.py",
    "orchestrator/cli/verify.py",
    "orchestrator/plan/stages.py",
    "orchestrator/spec/model.py",
    "orchestrator/spec/schema.py",
    "jobs/codebook.py",
    "jobs/pack.py",
    "jobs/perplexity.py",
    "jobs/speech/pool.py",
}
"""Still to go."""


def is_tested(name: str) -> bool:
    """Whether ``plan/keys.py`` has its ``plan/test_keys.py`` below tests/unit."""
    folder, _, file = name.rpartition("/")
    if folder == "jobs/audio/corpora":  # where each has a layout
        file = "layouts.py"
    return (ROOT / "tests" / "unit" / folder / f"test_{file}").exists()


def has_code(name: str) -> bool:
    """Whether a module is more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in tree_of(ROOT / name).body)


def test_each_module_has_its_test_module() -> None:
    names = [name_of(path) for path in (*MODULES, *JOBS) if path.name != "__init__.py"]
    found = {name for name in names if has_code(name) and not is_tested(name)}
    assert found <= WITHOUT_A_TEST
