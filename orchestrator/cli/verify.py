"""``orchestrator verify``: re-hash everything a run produced."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from orchestrator.cli.arguments import add_run, run_and_store, say_if_moved
from orchestrator.control.executor import observe
from orchestrator.ledger.verify import verify
from orchestrator.quantities import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [--cluster F] [--json]."""
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(options: argparse.Namespace) -> int:
    """Print a verdict on every stage; 1 when anything is wrong."""
    folder, store = run_and_store(options)
    say_if_moved(folder)
    verdicts = []
    is_alive = observe(folder).is_alive
    if is_alive:
        print(f"run {folder.name}: still running; verify it again at its end", file=sys.stderr)
    for verdict in verify(folder, store, is_alive=is_alive):
        verdicts.append(verdict)
        if not options.json:
            size = f"{verdict.num_files} files, {format_bytes(verdict.num_bytes)}"
            end = "" if verdict.problems else ": ok"
            print(f"{verdict.instance}: {', '.join((size, *verdict.notes))}{end}")
            for problem in verdict.problems:
                print(f"  {problem}")
            if verdict.remedy:
                print(f"  {verdict.remedy}")
    sound = not any(v.problems for v in verdicts)
    if options.json:
        stages = [dataclasses.asdict(v) for v in verdicts]
        print(json.dumps({"run": folder.name, "ok": sound, "stages": stages}))
    return 0 if sound else 1
