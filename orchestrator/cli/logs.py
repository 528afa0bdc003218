"""``orchestrator logs``: print the logs of a run."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.control.executor import observe
from orchestrator.errors import RequestError
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.submission import Submissions

FOLLOW_EVERY_S = 0.5
_ERROR = re.compile(r"^(error:|Traceback|.*\b(Error|Exception)\b.*:)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [STAGE] [--attempt N] [--rank R] [--follow] [--first-error] [--cluster F]."""
    add_run(parser)
    parser.add_argument(
        "stage", metavar="STAGE", nargs="?", help="stage name or instance id; all when absent"
    )
    parser.add_argument(
        "--attempt", type=int, metavar="N", help="attempt number; the newest when absent"
    )
    parser.add_argument(
        "--rank", type=int, metavar="R", help="a training rank's log instead of the driver's"
    )
    parser.add_argument("--follow", action="store_true", help="go on printing until the run ends")
    parser.add_argument(
        "--first-error", action="store_true", help="only the first error, with its place"
    )


def run(options: argparse.Namespace) -> int:
    """Print the chosen logs."""
    folder, _ = run_and_store(options)
    if options.first_error:
        return _first_error(folder, options)
    printed: dict[str, int] = {}
    look_at = 0.0
    while True:
        for title, text in _logs(folder, options):
            _print_rest(title, text, printed)
        if not options.follow:
            return 0
        if time.monotonic() >= look_at:
            observed = observe(folder)
            if not observed.is_alive:
                return 0
            look_at = time.monotonic() + observed.look_every_s
        time.sleep(FOLLOW_EVERY_S)


def _print_rest(title: str, text: str, printed: dict[str, int]) -> None:
    if title not in printed:
        print(f"==> {title} <==")
    print(text[printed.get(title, 0) :], end="")
    sys.stdout.flush()
    printed[title] = len(text)


def _first_error(folder: RunFolder, options: argparse.Namespace) -> int:
    options.attempt = options.attempt or None
    for title, text in _logs(folder, options):
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if _ERROR.match(line):
                print(f"==> {title}:{number + 1} <==")
                print("\n".join(lines[number : number + 30]))
                return 0
    print("no error found", file=sys.stderr)
    return 0


def _logs(folder: RunFolder, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    name = DRIVER_LOG if options.rank is None else f"rank-{options.rank:05d}.log"
    for attempt in _attempts(folder, options):
        if attempt.storage.exists(name):
            yield (
                f"{attempt.storage.url}/{name}",
                attempt.storage.read_bytes(name).decode(errors="replace"),
            )
    if options.rank is None:
        yield from _outputs(folder, options)


def _outputs(folder: RunFolder, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What a scheduler's jobs have said that have not come to an attempt."""
    chosen = {i.id for i in folder.plan().chosen(options.stage)}
    for submission in Submissions(folder.storage).all()[-1:]:
        for job in submission.jobs:
            is_chosen = job.kind == "stage" and job.instance in chosen
            if not is_chosen or folder.attempts(job.instance):
                continue
            place = folder.storage.at(Submissions.folder(submission.number), job.name)
            for name in place.children():
                if name.endswith(".out"):
                    yield f"{place.url}/{name}", place.read_bytes(name).decode(errors="replace")


def _attempts(folder: RunFolder, options: argparse.Namespace) -> Iterator[AttemptFolder]:
    plan = folder.plan()
    leaders = dict.fromkeys(i.leader for i in plan.chosen(options.stage))
    if not leaders:
        known = ", ".join(plan.names)
        raise RequestError(f"{options.stage}: no such stage in {folder.name}; it has {known}")
    for leader in leaders:
        attempts = folder.attempts(leader)
        yield from (
            (a for a in attempts if options.attempt == a.number)
            if options.attempt
            else attempts[-1:]
        )
