"""``orchestrator VERB …``: finds the verb, runs it, turns errors into one line and an exit code.

A verb's module is imported only when it is used, so that ``--help`` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from orchestrator import __version__
from orchestrator.errors import ExitCode, OrchestratorError, os_words

VERBS = {
    "plan": "show what a recipe would do: reuse, resume or run, and why",
    "submit": "start a recipe's run, or attach to it",
    "status": "show a run's stages and attempts, or all runs",
    "logs": "print the logs of a run",
    "resume": "continue a run that stopped",
    "cancel": "stop a run, or one stage of it",
    "verify": "re-hash everything a run produced",
    "report": "write a run's report page",
    "chaos": "inject a fault into a running training, and say what it cost",
    "doctor": "check this machine and the cluster",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, verbs = _parser()
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb in VERBS:
        module = importlib.import_module(f"orchestrator.cli.{verb}")
        module.add_arguments(verbs[verb])
    options = parser.parse_args(words)
    return exit_code_of(lambda: int(module.run(options)))


def exit_code_of(verb: Callable[[], int]) -> int:
    """Run a verb; say in one line on stderr why it could not do what it was asked."""
    try:
        return verb()
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the run goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:  # the store's, nearly always; it names the object and the remedy
        print(os_words(error), file=sys.stderr)
        return ExitCode.UNREACHABLE


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Train speech language models the TWIST way: "
        "one recipe in; a model, its scores and a record out.",
        epilog="exit codes: 0 done, 1 the run failed, 2 the request was wrong, "
        "3 the backend could not be reached, 130 interrupted (the run goes on)",
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs = {
        name: commands.add_parser(name, help=text, description=text) for name, text in VERBS.items()
    }
    return parser, verbs


if __name__ == "__main__":
    sys.exit(main())
