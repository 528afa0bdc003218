"""What any verb's failure looks like: one line on stderr and an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.cli.main import exit_code_of
from orchestrator.errors import BackendError, ExitCode, RequestError, RunFailedError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("r.yaml: wrong; mend it"), ExitCode.BAD_REQUEST, "r.yaml: wrong; mend it\n"),
        (RunFailedError("run x: failed"), ExitCode.FAILED, "run x: failed\n"),
        (BackendError("slurm: away"), ExitCode.UNREACHABLE, "slurm: away\n"),
        (ConnectionError("s3://b/x: away"), ExitCode.UNREACHABLE, "s3://b/x: away\n"),
        (
            OSError(28, "No space left on device; free some", "/s/a"),
            ExitCode.UNREACHABLE,
            "/s/a: No space left on device; free some\n",
        ),
        (
            KeyboardInterrupt(),
            ExitCode.INTERRUPTED,
            "interrupted; the run goes on\n",
        ),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    error: BaseException, code: ExitCode, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert exit_code_of(fail) == code
    assert capsys.readouterr().err == line


def test_what_a_verb_returns_is_the_exit_code() -> None:
    assert [exit_code_of(lambda: 0), exit_code_of(lambda: 1)] == [0, 1]


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_a_reader_that_leaves_is_no_failure() -> None:
    """As in ``orchestrator logs RUN | head``."""
    code = (
        "import sys; from orchestrator.cli.main import exit_code_of;"
        "sys.exit(exit_code_of(lambda: [print('x', flush=True) for _ in range(100_000)] and 0))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.wait(timeout=30) == 0
