"""The layer law: which package may import which, and what the control plane may pull in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LAYERS = ("errors", "quantities", "spec", "plan", "ledger", "report", "backends", "control", "cli")
FOR_JOBS = {"errors", "quantities", "spec", "plan", "ledger"}
HEAVY = {"torch", "ray", "jobs", "transformers", "deepspeed", "torchaudio"}
SLOW_TO_IMPORT = {"pydantic", "yaml", "fsspec", "rich", "matplotlib", "jinja2", "psutil"}
MODULES = sorted((ROOT / "orchestrator").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path: Path) -> set[str]:
    """Packages of orchestrator that a file imports."""
    names = [n.split(".") for n in imported(path)]
    return {n[1] for n in names if n[0] == "orchestrator" and len(n) > 1 and n[1] != "__version__"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_its_own_layer_and_those_to_the_left(path: Path) -> None:
    own = path.relative_to(ROOT / "orchestrator").with_suffix("").parts[0]
    allowed = set() if own == "__init__" else set(LAYERS[: LAYERS.index(own) + 1])
    assert layers_imported(path) <= allowed
    assert "jobs" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_jobs_import_only_what_describes_the_work(path: Path) -> None:
    assert layers_imported(path) <= FOR_JOBS


def test_every_layer_is_there() -> None:
    folder = ROOT / "orchestrator"
    found = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == set(LAYERS)


def loaded_after(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after some imports."""
    report = "import json, sys; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    argv = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


def test_starting_the_command_line_loads_next_to_nothing() -> None:
    loaded = loaded_after("import orchestrator, orchestrator.cli.main")
    assert loaded & (HEAVY | SLOW_TO_IMPORT) == set()


def test_the_whole_control_plane_loads_nothing_of_the_data_plane() -> None:
    names = [name_of(p).removesuffix(".py").replace("/", ".") for p in MODULES]
    loaded = loaded_after("\n".join(f"import {n.removesuffix('.__init__')}" for n in names))
    assert loaded & HEAVY == set()
    assert "pydantic" in loaded  # it did load something


def test_the_law_is_noticed_when_broken(tmp_path: Path) -> None:
    path = tmp_path / "planner.py"
    path.write_text("def f():\n    from orchestrator.cli import main\n    import jobs.train\n")
    assert layers_imported(path) == {"cli"}
    assert "jobs.train" in set(imported(path))
