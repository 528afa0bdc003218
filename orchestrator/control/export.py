"""Units of a run as files for other trainers, written by ``jobs.export`` where jobs can run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.control.code_snapshot import code_env
from orchestrator.control.job import module_argv
from orchestrator.errors import (
    BackendError,
    ExitCode,
    OrchestratorError,
    RequestError,
    RunFailedError,
)
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance

FORMATS = ("parquet", "slamkit", "fairseq", "npy")
"""As ``jobs.unit_formats`` has them."""
_ERRORS: dict[int, type[OrchestratorError]] = {
    ExitCode.BAD_REQUEST: RequestError,
    ExitCode.UNREACHABLE: BackendError,
}


def export_units(
    run: RunFolder, store: Store, to: Path, form: str
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Export the units of each codebook of a run: where they are, and their ``export.json``.

    Raises RequestError when the run has no units; what `jobs.export` raises.
    """
    instances = run.plan().units
    if not instances:
        raise RequestError(f"{run.name}: has no units: it was submitted to stop before them")
    for instance in instances:
        folder = (to if len(instances) == 1 else to / instance.id).absolute()
        _export(run, store, instance, folder, form)
        yield folder, json.loads((folder / "export.json").read_bytes())


def _export(run: RunFolder, store: Store, instance: Instance, to: Path, form: str) -> None:
    cluster = run.cluster()
    words = ("--store", store.storage.url, "--run", run.name, "--instance", instance.id)
    argv = module_argv(cluster, "jobs.export", *words, "--format", form, "--to", str(to))
    # Another environment need not have this package: jobs there import the run's own code.
    own = code_env(run) if cluster.environment.venv else {}
    done = subprocess.run(
        argv, stderr=subprocess.PIPE, errors="replace", env={**os.environ, **own}, check=False
    )
    if done.returncode:
        raise ended_badly(argv, done.returncode, done.stderr)


def ended_badly(argv: Sequence[str], code: int, stderr: str) -> OrchestratorError:
    """What a module of ``jobs`` that was run from here ended with: its last line, as an error."""
    end = f"{' '.join(argv[:3])}: ended with code {code} and without a word"
    said = stderr.strip().splitlines() or [end]
    return _ERRORS.get(code, RunFailedError)(said[-1])
