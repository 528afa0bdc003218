"""``orchestrator chaos``: a drill on a running training, before the long run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.cli.terminal import interruptible, what_stands
from orchestrator.control.chaos import FAULTS, Drill, Outcome
from orchestrator.quantities import format_duration

TIMEOUT_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN --kill WHAT [STAGE] [--rank R] [--timeout S] [--json] [--cluster F]."""
    add_run(parser)
    parser.add_argument(
        "stage", metavar="STAGE", nargs="?", help="which training; the first under way when absent"
    )
    parser.add_argument(
        "--kill",
        required=True,
        choices=FAULTS,
        help="rank, driver and node are killed; spot drains a rank's node of a Ray cluster, 30 s "
        "before its end; head ends a Ray cluster's head, where that is this machine, and waits for "
        "whoever starts it anew; hang stops a rank; store fails the next "
        "publication; byte harms the newest checkpoint and kills a rank",
    )
    parser.add_argument("--rank", type=int, default=0, help="the rank it strikes; 0 when absent")
    parser.add_argument(
        "--timeout", type=_seconds, default=TIMEOUT_S, metavar="S", help="longest wait, in seconds"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(options: argparse.Namespace) -> int:
    """Strike, wait, and print what it cost."""
    with interruptible(lambda: "nothing was struck"):
        folder, store = run_and_store(options)
        drill = Drill(folder, store, options.kill, options.stage)
    with interruptible(lambda: _struck(drill)):
        drill.strike(options.rank)
        print(f"{drill.instance}: {options.kill} struck near step {drill.step}", file=sys.stderr)
        outcome = drill.await_recovery(
            options.timeout,
            on_resume=lambda: print("no supervisor is left; resumed", file=sys.stderr),
        )
    print(json.dumps(dataclasses.asdict(outcome)) if options.json else "\n".join(_lines(outcome)))
    return 0


def _struck(drill: Drill) -> str:
    if not drill.struck_at:
        return "nothing was struck"
    return f"the fault has struck; {what_stands(drill.run)}"


def _seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text}")
    return value


def _lines(outcome: Outcome) -> list[str]:
    phases = ", ".join(f"{name} {format_duration(s)}" for name, s in outcome.phases_s.items())
    came_from = outcome.resumed_from or "the beginning: there was no checkpoint"
    return [
        f"{outcome.instance}: attempt {outcome.attempt} ended as {outcome.cause}",
        f"lost       {outcome.steps_lost} steps (from step {outcome.step} back to {came_from})",
        *(f"refused    {problem}" for problem in outcome.refused),
        f"noticed    {format_duration(outcome.noticed_s)} after the fault",
        f"restarted  {format_duration(outcome.restarted_s)} after that",
        f"first step {phases}",
        f"recovered  {format_duration(outcome.recovered_s)} after the fault",
    ]
