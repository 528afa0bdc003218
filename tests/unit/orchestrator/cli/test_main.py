"""What any verb's failure looks like: one line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
            KeyboardInterrupt("nothing was started"),
            ExitCode.INTERRUPTED,
            "interrupted; nothing was started\n",
        ),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted\n"),
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


_BUFFERED = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
_PRINT = (
    "import sys; from orchestrator.cli.main import exit_code_of;"
    "sys.exit(exit_code_of(lambda: [print('x', flush={}) for _ in range({})] and 0))"
)


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_leaves_is_no_failure(flush: bool) -> None:
    """As in ``orchestrator logs RUN | head``."""
    argv = [sys.executable, "-c", _PRINT.format(flush, 100_000)]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_BUFFERED)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.wait(timeout=30) == 0
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    writer.stderr.close()


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_disk_that_is_full_under_the_output_is_named(lines: int) -> None:
    with Path("/dev/full").open("wb") as full:
        argv = [sys.executable, "-c", _PRINT.format(False, lines)]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=_BUFFERED)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr == "stdout: No space left on device\n"


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"], ["--version"]])
def test_a_full_disk_under_help(words: list[str]) -> None:
    argv = [sys.executable, "-m", "orchestrator.cli.main", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=_BUFFERED)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr == "stdout: No space left on device\n"


@pytest.mark.parametrize("after_s", [0, 0.05, 0.2])
def test_an_interruption_while_a_verb_is_imported(after_s: float, tmp_path: Path) -> None:
    cluster = tmp_path / "c.yaml"
    cluster.write_text("backend: local\nstore: s\n")
    argv = [sys.executable, "-X", "importtime", "-m", "orchestrator.cli.main", "status"]
    process = subprocess.Popen(
        [*argv, "--cluster", str(cluster)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:  # it has come so far that the verb is being imported
        if line.rstrip().endswith(" orchestrator.control"):
            break
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    said = [line for line in process.stderr if not line.startswith("import time:")]
    process.stderr.close()
    assert (
        said in ([], ["interrupted\n"], ["interrupted; nothing was done\n"]) or "no run" in said[0]
    )
    # The interpreter may end by the signal itself, which a shell calls 130 as well.
    assert process.wait(timeout=60) in (130, -signal.SIGINT, 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_a_daemon_closed_are_no_fault(tmp_path: Path, closed: str) -> None:
    """Nor do they become the first file that is opened."""
    (tmp_path / "c.yaml").write_text(f"backend: local\nstore: {tmp_path / 'store'}\n")
    command = f"{sys.executable} -m orchestrator.cli.main status --cluster {tmp_path}/c.yaml"
    done = subprocess.run(
        ["bash", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]
