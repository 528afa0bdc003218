"""The layer law: which package may import which, and what the control plane may pull in."""

from __future__ import annotations

import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.source import JOBS, MODULES, ROOT, imported, module_of, name_of

LAYERS = (
    *("errors", "quantities", "parquet", "stratified", "spec", "plan", "ledger"),
    *("report", "backends", "control", "cli"),
)
FOR_JOBS = {"errors", "quantities", "parquet", "stratified", "spec", "plan", "ledger"}
TRAINED = {"lm", "speech", "scoring", "vocoder"}
"""Folders of ``jobs`` that know what is trained; ``jobs/training`` does not."""
HEAVY = {"torch", "ray", "jobs", "transformers", "deepspeed", "torchaudio"}
SLOW_TO_IMPORT = {"pydantic", "yaml", "obstore", "rich", "matplotlib", "jinja2", "psutil"}
TRAINING = [path for path in JOBS if path.parent == ROOT / "jobs" / "training"]


def layers_imported(path: Path) -> set[str]:
    """Packages of orchestrator that a file imports."""
    names = [n.split(".") for n in imported(path)]
    return {n[1] for n in names if n[0] == "orchestrator" and len(n) > 1 and n[1] != "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_its_own_layer_and_those_to_the_left(path: Path) -> None:
    own = path.relative_to(ROOT / "orchestrator").with_suffix("").parts[0]
    allowed = set() if own == "__init__" else set(LAYERS[: LAYERS.index(own) + 1])
    assert layers_imported(path) <= allowed
    assert "jobs" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_jobs_import_only_what_describes_the_work(path: Path) -> None:
    assert layers_imported(path) <= FOR_JOBS


def executors_imported(path: Path) -> set[str]:
    """Packages below ``control`` that a file imports: each belongs to one backend."""
    names = [n.split(".") for n in imported(path) if n.startswith("orchestrator.control.")]
    return {n[2] for n in names if (ROOT / "orchestrator/control" / n[2] / "__init__.py").exists()}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_executors_are_reached_through_the_registry_alone(path: Path) -> None:
    """Neither knows of another, and nobody else of any."""
    parts = path.relative_to(ROOT / "orchestrator").parts
    own = {parts[1]} if len(parts) == 3 and parts[0] == "control" else set()
    assert executors_imported(path) <= own


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_the_training_runtime_knows_nothing_of_what_it_trains(path: Path) -> None:
    packages = tuple(f"jobs.{name}" for name in TRAINED)
    assert [name for name in imported(path) if name.startswith(packages)] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = {module_of(path): path for path in (*MODULES, *JOBS)}
    graph = {}
    for module, path in paths.items():
        names = {part for name in imported(path) for part in (name, name.rpartition(".")[0])}
        graph[module] = (names & paths.keys()) - {module}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(paths)


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
    loaded = loaded_after("\n".join(f"import {module_of(path)}" for path in MODULES))
    assert loaded & HEAVY == set()
    assert "pydantic" in loaded  # it did load something


def test_what_starts_the_ranks_of_a_training_waits_for_none_of_their_libraries() -> None:
    loaded = loaded_after("import jobs.train, jobs.training.node_agent")
    assert loaded & {"torch", "transformers", "deepspeed", "ray", "pandas", "pyarrow"} == set()


def test_the_law_is_noticed_when_broken(tmp_path: Path) -> None:
    path = tmp_path / "planner.py"
    path.write_text(
        "def f():\n    from orchestrator.cli import main\n    import jobs.train\n"
        "    from orchestrator.control.slurm.jobs import jobs_of\n"
    )
    assert layers_imported(path) == {"cli", "control"}
    assert executors_imported(path) == {"slurm"}
    assert "jobs.train" in set(imported(path))
