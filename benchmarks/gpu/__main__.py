"""Runs the rows and prints the table: ``python -m benchmarks.gpu [--json FILE]``.

Exit code 1 when a row failed. A row that needs what is not here is skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import about
from benchmarks.gpu.figures import Setting, as_json, table
from benchmarks.gpu.rows import ROWS, Outcome, preload, run

TOTAL_S = 420.0
"""For all rows; `make gpu` gives its tests 100 s besides."""


def main() -> int:
    """Run them; the exit code."""
    options = _options()
    setting = Setting(device=options.device, is_tiny=options.tiny, audio=options.audio)
    facts = about(setting)
    print(", ".join(f"{name} {value or 'unknown'}" for name, value in facts.items()), flush=True)
    preload()
    outcomes = list(_outcomes(options, setting))
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    print(table(figures))
    for outcome in outcomes:
        if outcome.skipped:
            print(f"{outcome.row}: skipped: {outcome.skipped}")
        if outcome.failed:
            print(f"{outcome.row}: failed: {outcome.failed}")
    if options.json:
        Path(options.json).write_text(json.dumps(_report(facts, setting, outcomes), indent=1))
    return int(any(outcome.failed for outcome in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small, only to see that all runs")
    parser.add_argument("--audio", default="", help="an .npz of waves, float32 at 16 kHz")
    parser.add_argument("--json", help="write the table there as well")
    parser.add_argument("--rows", nargs="+", default=[], help="some rows alone, by name")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="for all rows together")
    options = parser.parse_args()
    names = [row.name for row in ROWS]
    if unknown := set(options.rows) - set(names):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; give some of {', '.join(names)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA device here; give cpu with --tiny, or look")
    return options


def _outcomes(options: argparse.Namespace, setting: Setting) -> Any:
    deadline = time.monotonic() + options.total_s
    for row in ROWS:
        if options.rows and row.name not in options.rows:
            continue
        left_s = min(row.limit_s, deadline - time.monotonic())
        started = time.monotonic()
        if left_s <= 0:
            yield Outcome(row.name, [], skipped="no time is left")
            continue
        yield run(row, setting, left_s)
        print(f"{row.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _report(facts: dict[str, str], setting: Setting, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        **facts,
        "tiny": setting.is_tiny,
        "figures": [one for outcome in outcomes for one in as_json(outcome.figures)],
        "skipped": {o.row: o.skipped for o in outcomes if o.skipped},
        "failed": {o.row: o.failed for o in outcomes if o.failed},
    }


if __name__ == "__main__":
    sys.exit(main())
