"""``orchestrator logs``: print the logs of a run."""

from __future__ import annotations

import argparse
import codecs
import re
import sys
import time
from collections.abc import Collection, Iterator

from orchestrator.cli.arguments import add_run, run_and_store, say_if_moved
from orchestrator.cli.terminal import interruptible, what_stands
from orchestrator.cli.watch import failure_lines
from orchestrator.control.executor import observe
from orchestrator.errors import RequestError
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import run_progress
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import Submissions

FOLLOW_EVERY_S = 0.5
_DECODER = codecs.getincrementaldecoder("utf-8")
_RANK_LOG = re.compile(r"rank-(\d+)\.log$")
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
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--follow", action="store_true", help="go on printing until the run ends")
    form.add_argument(
        "--first-error", action="store_true", help="only the first error, with its place"
    )


def run(options: argparse.Namespace) -> int:
    """Print the chosen logs."""
    folder, store = run_and_store(options)
    say_if_moved(folder)
    logs = Logs(folder, options)
    if options.first_error:
        code = _first_error(logs, folder, store)
        for line in logs.earlier_failures():
            print(line, file=sys.stderr)
        return code
    if not options.follow:
        _print_new(logs)
        if not logs.has_read:
            what = options.stage or "any stage"
            print(f"run {folder.name}: no attempt at {what} has a log so far", file=sys.stderr)
        return 0
    with interruptible(lambda: what_stands(folder)):
        return _follow(folder, logs)


def _follow(run: RunFolder, logs: Logs) -> int:
    look_at = 0.0
    while True:
        _print_new(logs)
        if time.monotonic() >= look_at:
            observed = observe(run)
            if not observed.is_alive:
                return 0
            look_at = time.monotonic() + observed.look_every_s
        time.sleep(FOLLOW_EVERY_S)


def _print_new(logs: Logs) -> None:
    for title, text in logs.new_text():
        print(f"{title}{text}", end="")
    sys.stdout.flush()


class Logs:
    """The chosen logs of a run; each call gives what was added since the one before."""

    def __init__(self, run: RunFolder, options: argparse.Namespace) -> None:
        self._run, self._options = run, options
        self._chosen = run.chosen(options.stage)
        self._name = DRIVER_LOG if options.rank is None else f"rank-{options.rank:05d}.log"
        self._read: dict[str, tuple[int, codecs.IncrementalDecoder]] = {}
        """By URL: bytes read, and what turns them into text."""
        self._ended: set[str] = set()
        """Attempts that had ended when their log was last read."""
        self._require_attempt()
        if options.rank is not None:
            self._require_rank()

    def new_text(self) -> Iterator[tuple[str, str]]:
        """A title where a log is new, and its text that is."""
        for attempt in self._attempts():
            url = attempt.storage.url
            if url not in self._ended:
                has_ended = self._options.follow and attempt.storage.exists("end.json")
                yield from self._rest(attempt.storage, self._name)
                self._ended |= {url} if has_ended else set()
        if self._options.rank is None:
            for storage, name in self._outputs():
                yield from self._rest(storage, name)

    def are_about(self, instance: str) -> bool:
        """Whether a stage instance's newest attempt was chosen, or the run's name with them all."""
        names = [i.id for i in self._chosen] + [self._run.name] * (not self._options.stage)
        return self._options.attempt is None and instance in names

    @property
    def has_read(self) -> bool:
        """Whether there is any log so far."""
        return bool(self._read)

    def earlier_failures(self) -> Iterator[str]:
        """A line for each stage of which attempts failed before those that are read."""
        for leader in self._leaders if self._options.attempt is None else ():
            ends = [(a.number, a.end or {}) for a in self._run.attempts(leader)[:-1]]
            failed = [f"{n} ({end.get('cause')})" for n, end in ends if end.get("cause")]
            if failed:
                yield f"{leader}: earlier attempts failed: {', '.join(failed)}; read --attempt N"

    def _rest(self, storage: Storage, name: str) -> Iterator[tuple[str, str]]:
        url = f"{storage.url}/{name}"
        start, decoder = self._read.get(url, (0, _DECODER(errors="replace")))
        try:
            data = storage.read_bytes(name, start=start)
        except FileNotFoundError:
            return
        title = "" if url in self._read else f"==> {url} <==\n"
        self._read[url] = start + len(data), decoder
        if title or data:
            yield title, decoder.decode(data)

    def _require_attempt(self) -> None:
        """Raises RequestError when the attempt that is asked for is none of those there are."""
        number = self._options.attempt
        if number is not None and not list(self._attempts()):
            numbers = {a.number for leader in self._leaders for a in self._run.attempts(leader)}
            raise RequestError(f"--attempt {number}: no such attempt; {_there_are(numbers)}")

    def _require_rank(self) -> None:
        """Raises RequestError when ranks have logs, or never will, and this one has none."""
        names = {name for attempt in self._attempts() for name in attempt.storage.children()}
        ranks = {int(match[1]) for name in names if (match := _RANK_LOG.match(name))}
        if self._options.rank not in ranks and (ranks or not self._options.follow):
            there = _there_are(ranks)
            raise RequestError(f"--rank {self._options.rank}: no log of such a rank; {there}")

    @property
    def _leaders(self) -> dict[str, None]:
        return dict.fromkeys(i.leader for i in self._chosen)

    def _attempts(self) -> Iterator[AttemptFolder]:
        number = self._options.attempt
        for leader in self._leaders:
            attempts = self._run.attempts(leader)
            is_any = number is None
            yield from attempts[-1:] if is_any else (a for a in attempts if a.number == number)

    def _outputs(self) -> Iterator[tuple[Storage, str]]:
        """What a scheduler's jobs have printed that have not come to an attempt."""
        chosen = {i.id for i in self._chosen}
        for submission in self._run.submissions.all()[-1:]:
            for job in submission.jobs:
                is_chosen = job.kind == "stage" and job.instance in chosen
                if not is_chosen or self._run.attempts(job.instance):
                    continue
                output = self._run.storage.at(Submissions.folder(submission.number), job.name)
                yield from ((output, name) for name in output.children() if name.endswith(".out"))


def _there_are(numbers: Collection[int]) -> str:
    return f"there are {min(numbers)} to {max(numbers)}" if numbers else "there is none"


def _first_error(logs: Logs, run: RunFolder, store: Store) -> int:
    """Print the first error of the logs; the run's own records where nothing could be logged."""
    for title, text in logs.new_text():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if _ERROR.match(line):
                print(title.replace(" <==\n", f":{number + 1} <=="))
                print("\n".join(lines[number : number + 30]))
                return 0
    if lines := [line for line in _failures(run, store) if logs.are_about(line.partition(":")[0])]:
        print("\n".join(lines))
    else:
        print("no error found", file=sys.stderr)
    return 0


def _failures(run: RunFolder, store: Store) -> Iterator[str]:
    return failure_lines(run_progress(run, store, observe(run)))
