"""Slurm's commands, asked so that nothing in a user's shell changes what they answer or submit.

In: a command line. Out: what it prints, or why there is no answer. What a cluster file says is in
the script; sbatch would put its environment above that.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping

from orchestrator.errors import BackendError

TIMEOUT_S = 60.0
"""Longest wait for one answer of the scheduler."""
PATIENCE_S = 1.5
"""After so long without an answer the controller is asked whether it is there at all."""
PING_TIMEOUT_S = 1.0
SILENT_FOR_S = 5.0
"""How long a controller that was not there counts as not there: a verb asks it several things."""
SACCT = ("sacct", "--allocations", "--parsable2", "--noheader")

_silent_until: dict[tuple[str, str], float] = {}
"""By where commands and configuration come from: until when nobody is asked again."""
_READS = ("squeue", "sinfo", "scontrol show")
"""Commands that only read what the controller knows: to give up on them changes nothing."""
_OF_JOBS = re.compile(
    r"(SLURM|SLURMD|SRUN|SUBMITIT|ORCHESTRATOR_ALLOCATION)(_(?!CONF$)|$)|SBATCH_(CPU|MEM)_BIND"
)
_OF_ANSWERS = re.compile(
    r"(SQUEUE|SACCT|SACCTMGR|SINFO|SCONTROL|SCANCEL)_|"
    r"SLURM_(TIME_FORMAT|BITSTR_LEN|DEBUG|DEBUG_FLAGS)$"
)
"""What a user's shell says about how commands answer, and which jobs they leave out."""
_OPEN = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_ACCTG_FREQ": "acctg-freq",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_CORE_SPEC": "core-spec",
    "SBATCH_DELAY_BOOT": "delay-boot",
    "SBATCH_DISTRIBUTION": "distribution",
    "SBATCH_EXCLUSIVE": "exclusive",
    "SBATCH_GRES_FLAGS": "gres-flags",
    "SBATCH_HINT": "hint",
    "SBATCH_NETWORK": "network",
    "SBATCH_PARTITION": "partition",
    "SBATCH_POWER": "power",
    "SBATCH_PROFILE": "profile",
    "SBATCH_QOS": "qos",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_THREAD_SPEC": "thread-spec",
    "SBATCH_WAIT4SWITCH": "switches",
    "SBATCH_WCKEY": "wckey",
    "SLURM_CLUSTERS": "clusters",  # for all commands, so that who lacks it finds no job
}
"""Variables of sbatch(1) that may say what a cluster file leaves open, with their options. All
others are about what every script says: size, time, output, signals, arrays, requeueing."""


def ask(*words: str, script: str = "") -> str:
    """What a scheduler's command prints; for sbatch with the ``script`` that it is given.

    Raises BackendError when it fails or does not answer.
    """
    env = environment(os.environ, script)
    # Whoever types a command has little patience; a job can wait for a controller that restarts.
    is_urgent = "SLURM_JOB_ID" not in os.environ and " ".join(words).startswith(_READS)
    try:
        done = _answer(words, env, is_urgent=is_urgent)
    except subprocess.TimeoutExpired as waited:
        raise BackendError(
            f"slurm: {words[0]} did not answer within {waited.timeout:.0f} s; try again later"
        ) from None
    except OSError as error:
        raise BackendError(
            f"slurm: {words[0]} cannot be run here ({error.strerror}); use a login node"
        ) from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        problems = [line for line in lines if not line.startswith('Try "')]
        said = (ln.removeprefix(f"{words[0]}: ").removeprefix("error: ") for ln in problems[-3:])
        problem = "; ".join(dict.fromkeys(said)) or f"exit code {done.returncode}"
        raise BackendError(f"slurm: {words[0]}: {problem}")
    return done.stdout


def environment(env: Mapping[str, str], script: str = "") -> dict[str, str]:
    """The environment without what changes answers, or contradicts the ``script`` for sbatch.

    A job that is submitted from a job would also take its binding, its restarts and its folder for
    its own.
    """
    kept = {name: value for name, value in env.items() if not _OF_ANSWERS.match(name)}
    if "SLURM_JOB_ID" in env:
        kept = {name: value for name, value in kept.items() if not _OF_JOBS.match(name)}
    is_open = _open_to(script)
    return {n: v for n, v in kept.items() if not n.startswith("SBATCH_") or n in is_open}


def taken_from_shell(scripts: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a shell that decide what some of the scripts leave open."""
    names = set[str]().union(*(_open_to(script) for script in scripts))
    return {name: env[name] for name in sorted(names & env.keys())}


def _open_to(script: str) -> Collection[str]:
    said = set(re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE))
    return {name for name, option in _OPEN.items() if option not in said}


def _answer(
    words: tuple[str, ...], env: Mapping[str, str], *, is_urgent: bool
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises TimeoutExpired; BackendError when it is urgent and no controller is there.
    """
    site = (env.get("PATH", ""), env.get("SLURM_CONF", ""))
    silence = BackendError(f"slurm: the controller does not answer {words[0]}; try again later")
    if is_urgent and time.monotonic() < _silent_until.get(site, 0.0):
        raise silence
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        errors="replace",  # comments and names of other jobs may be in any encoding
        env=env,
    ) as process:
        try:
            try:
                out, err = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                if is_urgent and not _is_up(env):
                    _silent_until[site] = time.monotonic() + SILENT_FOR_S
                    raise silence from None
                out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _is_up(env: Mapping[str, str]) -> bool:
    """Whether a controller says that it is there; a busy one does."""
    try:
        answer = subprocess.run(
            ("scontrol", "ping"),
            capture_output=True,
            text=True,
            timeout=PING_TIMEOUT_S,
            check=False,
            env=env,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return " is UP" in answer.stdout
