"""``orchestrator VERB …``: finds the verb, runs it, turns errors into one line and an exit code.

A verb's module is imported only when it is used, so that ``--help`` stays fast.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from orchestrator import __version__
from orchestrator.errors import ExitCode, OrchestratorError, os_words
from orchestrator.ledger.stuck_files import StuckFile, answer_within_s, own_files_watched

VERBS = {
    "plan": "show what a recipe would do: reuse, resume or run, and why",
    "submit": "start a recipe's run, or attach to it",
    "status": "show a run's stages and attempts, or all runs",
    "logs": "print the logs of a run",
    "resume": "continue a run that stopped",
    "cancel": "stop a run, or one stage of it",
    "verify": "re-hash everything a run produced",
    "report": "write a run's report page, or compare runs on one",
    "export": "write a run's models, or its units, for other programs",
    "score": "score a model on suites of pairs, such as sWUGGY",
    "chaos": "inject a fault into a running training, and say what it cost",
    "cluster": "start, look at or end the Ray cluster of a cluster file",
    "doctor": "check this machine and the cluster",
}

_STDOUT, _STDERR = 1, 2
_OUTPUT_ERRNOS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)
"""What writing to stdout may say; errors of the store name an object."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    return exit_code_of(lambda: _watched(words))


def _open_closed_streams() -> None:
    """Let what daemons close lead nowhere: the next files opened would be taken for stdout."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(_STDOUT, "w")
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w")


def _watched(words: list[str]) -> int:
    with own_files_watched(answer_within_s(), _give_up):
        return _run(words)


def _run(words: list[str]) -> int:
    parser, verbs = _parser()
    if not words or words[0] not in VERBS:
        parser.parse_args(words)
        parser.error("the verb comes first")
    verb = words[0]
    try:
        run, options = _understood(verb, verbs[verb], words[1:])
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was done") from None
    return int(run(options))


def _understood(
    verb: str, parser: argparse.ArgumentParser, words: list[str]
) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """What a verb runs, and with what.

    An interruption waits for it: libraries that are being imported make it an error of theirs.
    """
    interruptions: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interruptions.append(number))
    try:
        module = importlib.import_module(f"orchestrator.cli.{verb}")
        module.add_arguments(parser)
        # Intermixed: what comes after an option may still be the name of a stage.
        return module.run, parser.parse_intermixed_args(words)
    finally:
        signal.signal(signal.SIGINT, before)
        if interruptions:
            raise KeyboardInterrupt


def exit_code_of(verb: Callable[[], int]) -> int:
    """Run a verb; say in one line on stderr why it could not do what it was asked."""
    try:
        try:
            return verb()
        finally:
            sys.stdout.flush()
    except OrchestratorError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        _say("; ".join(("interrupted", *map(str, interrupt.args))))
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough
        _drop(sys.stdout)
        return ExitCode.DONE
    except OSError as error:  # the store's, nearly always; it names the object and the remedy
        is_of_output = error.filename is None and error.errno in _OUTPUT_ERRNOS
        if is_of_output:
            _drop(sys.stdout)
        _say(f"stdout: {error.strerror}" if is_of_output else os_words(error))
        return ExitCode.UNREACHABLE


def _give_up(stuck: StuckFile) -> None:
    _say(str(stuck))
    os._exit(ExitCode.UNREACHABLE)


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody listens; the exit code is all that is left
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what is left in a stream go nowhere: the interpreter writes it out at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Train speech language models the TWIST way: "
        "one recipe in; a model, its scores and a record out.",
        epilog="exit codes: 0 done, 1 the run failed, 2 the request was wrong, "
        "3 the scheduler or the store could not be reached, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs = {
        name: commands.add_parser(name, help=text, description=text) for name, text in VERBS.items()
    }
    return parser, verbs


if __name__ == "__main__":
    sys.exit(main())
