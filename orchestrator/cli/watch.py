"""Live progress of a run in the terminal: shards, audio s/s, loss, tokens/s, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.control.executor import observe
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import FINAL, run_cause, run_progress
from orchestrator.ledger.store import Store
from orchestrator.quantities import format_duration
from orchestrator.report.page import PAGE, summary

EVERY_S = 1.0
"""How often what jobs write themselves is read; a scheduler is asked less often."""
REPORT_TIMEOUT_S = 60.0
_MAX_ATTEMPTS_LISTED = 3


def watch(run: RunFolder, store: Store) -> int:
    """Show the run until it ends; 0 when it succeeded, else 1.

    Interrupting leaves the run alone.
    """
    console = Console(stderr=True)
    observed, observed_at = observe(run), time.monotonic()
    status = run_progress(run, store, observed)
    shown: dict[str, str] = {}
    with Live(stage_table(status), console=console, refresh_per_second=2, transient=False) as live:
        while status["state"] not in FINAL:
            time.sleep(EVERY_S)
            if time.monotonic() - observed_at >= observed.look_every_s:
                observed, observed_at = observe(run), time.monotonic()
            status = run_progress(run, store, observed)
            live.update(stage_table(status))
            if not console.is_terminal:
                _print_changes(status, shown)
    has_succeeded = status["state"] == "succeeded"
    if has_succeeded or not observed.has_scheduler:
        _wait_for_last_words(run, by_supervisor=not observed.has_scheduler)
    if not has_succeeded:
        _print_failures(run, status)
        return 1
    print("\n".join(summary(run, store)))
    return 0


def _wait_for_last_words(run: RunFolder, *, by_supervisor: bool) -> None:
    """The report is written after the run's end is known, by the supervisor or the last job."""
    deadline = time.monotonic() + REPORT_TIMEOUT_S

    def is_said() -> bool:
        if not by_supervisor:
            return run.storage.exists(PAGE)
        supervisors = run.supervisors()
        last = Process(**supervisors[-1].started["process"]) if supervisors else None
        return last is None or last.is_alive() is not True

    while not is_said() and time.monotonic() < deadline:
        time.sleep(0.1)


def stage_table(status: Mapping[str, Any]) -> Table:
    """One row a stage instance."""
    table = Table(
        "stage", "variant", "state", "progress", "left", "attempts", box=None, pad_edge=False
    )
    table.title = f"{status['run']}: {status['state']}"
    table.title_justify = "left"
    table.columns[0].no_wrap = True
    everyone = max((s["variant"] for s in status["stages"]), key=len)
    for stage in status["stages"]:
        state = "reused" if stage["reused"] else stage["state"]
        left = _left(stage) if state == "running" else ""
        variant = "all" if stage["variant"] == everyone else _short(stage["variant"])
        table.add_row(stage["id"], variant, state, _progress(stage), left, _attempts(stage))
    return table


def _short(variant: str) -> str:
    return variant if len(variant) <= 40 else f"{variant[:37]}..."


def _progress(stage: Mapping[str, Any]) -> str:
    said = stage["progress"]
    if stage["state"] == "running" and said:
        rates = ", ".join(
            f"{name.replace('_per_s', '/s')} {value:.4g}" for name, value in said["rates"].items()
        )
        return f"{said['done']:g}/{said['total']:g} {said['unit']}" + (
            f" ({rates})" if rates else ""
        )
    if stage["shards_total"]:
        return f"{stage['shards_done']}/{stage['shards_total']} shards"
    return f"{stage['step']}/{stage['steps']} steps" if stage["steps"] else ""


def _left(stage: Mapping[str, Any]) -> str:
    """Time left, if the rest goes as the attempt has gone so far."""
    said = stage["progress"]
    if not said or not said["done"]:
        return ""
    gone_s = said["at"] - stage["attempts"][-1]["started_at"]
    return format_duration(gone_s * (said["total"] - said["done"]) / said["done"])


def _attempts(stage: Mapping[str, Any]) -> str:
    ends = [a["cause"] for a in stage["attempts"] if a["cause"]][-_MAX_ATTEMPTS_LISTED:]
    return f"{len(stage['attempts'])}" + (f" ({', '.join(ends)})" if ends else "")


def _print_changes(status: Mapping[str, Any], shown: dict[str, str]) -> None:
    """Without a terminal: a line when a stage changes its state."""
    for stage in status["stages"]:
        state = "reused" if stage["reused"] else stage["state"]
        if shown.get(stage["id"]) != state:
            shown[stage["id"]] = state
            print(
                f"{time.strftime('%H:%M:%S')} {stage['id']} ({stage['variant']}): {state}",
                file=sys.stderr,
            )


def _print_failures(run: RunFolder, status: Mapping[str, Any]) -> None:
    cause = run_cause(run)
    print(
        f"run {status['run']}: {status['state']}" + (f" ({cause})" if cause else ""),
        file=sys.stderr,
    )
    for stage in status["stages"]:
        if stage["state"] == "failed" and stage["attempts"]:
            last = stage["attempts"][-1]
            print(
                f"  {stage['id']}: {last['cause']}: {last['reason']}; see {last['log']}",
                file=sys.stderr,
            )
    print(f"  `orchestrator resume {status['run']}` continues it", file=sys.stderr)
