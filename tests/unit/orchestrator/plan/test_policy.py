"""What each way of ending means, and what is done about it."""

from __future__ import annotations

import pytest

from orchestrator.errors import Cause
from orchestrator.plan.policy import Decision, Ending, Past, decide


def ending(**how: object) -> Ending:
    base = {"exit_code": 1, "complete": False, "progress": 0.0, "node": "n1"}
    return Ending(**{**base, **how})


FIRST_ENDS = (
    ("the artifact is there", ending(complete=True, exit_code=0), None, "done"),
    ("the artifact is there all the same", ending(complete=True, exit_code=-9), None, "done"),
    ("nothing to show for success", ending(exit_code=0), "unknown", "resume"),
    ("another run has the key", ending(exit_code=75), "lease_held", "wait"),
    ("kill -9", ending(exit_code=-9), "killed", "resume"),
    ("a segmentation fault", ending(exit_code=-11), "killed", "resume"),
    ("asked to stop", ending(exit_code=143), "preempted", "resume"),
    ("preempted", ending(exit_code=1, stopped="preempted"), "preempted", "resume"),
    ("preempted with a kill", ending(exit_code=-9, stopped="preempted"), "preempted", "resume"),
    ("nobody saw it end", ending(exit_code=None), "node_lost", "resume"),
    ("a wrong request", ending(exit_code=2), "bad_request", "stop"),
    ("the store out of reach", ending(exit_code=3), "storage", "resume"),
    ("an unknown error", ending(log_tail="KeyError: 'x'"), "error", "resume"),
    ("bad data", ending(cause=Cause.BAD_DATA), "bad_data", "stop"),
    ("a hang", ending(cause=Cause.COMM_HANG), "comm_hang", "resume"),
    ("no finite loss", ending(cause=Cause.NONFINITE), "nonfinite", "resume"),
    ("a full store", ending(cause=Cause.STORAGE), "storage", "resume"),
    ("a hub that is away", ending(cause=Cause.NETWORK), "network", "resume"),
    (
        "Ray went away under it",
        ending(cause=Cause.ERROR, has_lost_ray=True),
        "ray_lost",
        "resume",
    ),
    ("Ray took it along", ending(exit_code=-6, has_lost_ray=True), "ray_lost", "resume"),
    (
        "Ray took its workers",
        ending(cause=Cause.WORKER_LOST, has_lost_ray=True),
        "ray_lost",
        "resume",
    ),
    ("bad data, and Ray too", ending(cause=Cause.BAD_DATA, has_lost_ray=True), "bad_data", "stop"),
    ("Ray went away", ending(cause=Cause.RAY_LOST), "ray_lost", "resume"),
    ("a driver's own error", ending(cause=Cause.ERROR), "error", "resume"),
    ("a rank that died", ending(cause=Cause.WORKER_LOST), "worker_lost", "resume"),
    (
        "a driver killed after it recorded its cause",
        ending(exit_code=-9, cause=Cause.COMM_HANG),
        "comm_hang",
        "resume",
    ),
    (
        "preempted while it failed",
        ending(stopped=Cause.PREEMPTED, cause=Cause.STORAGE),
        "preempted",
        "resume",
    ),
    (
        "nobody saw it end, with its word",
        ending(exit_code=None, cause=Cause.ERROR),
        "node_lost",
        "resume",
    ),
)
SIGNS = (
    ("torch.OutOfMemoryError: CUDA out of memory. Tried", "device_oom", "smaller"),
    ("HIP out of memory", "device_oom", "smaller"),
    ("ray.exceptions.OutOfMemoryError: node running low on memory", "host_oom", "resume"),
    ("Watchdog caught collective operation timeout: WorkNCCL(", "comm_hang", "resume"),
    ("OSError: [Errno 5] s3 is having a day", "storage", "resume"),
    # What Ray says of any death, and of its own.
    ("(raylet) A worker died or was killed; ActorDiedError", "worker_lost", "resume"),
    ("The raylet has died", "ray_lost", "resume"),
    ("worker process has died\nCheck failed: RPC error: WrongClusterID", "ray_lost", "resume"),
    ("ActorDiedError ... (1) killed by the OOM killer due to high memory", "worker_lost", "resume"),
    ("OSError: [Errno 28] No space left on device", "storage", "resume"),
    ("RuntimeError: [enforce fail at ...cc:672] . unexpected pos 640 vs 598", "storage", "resume"),
    ("I/O error: Read-only file system (os error 30)", "storage", "resume"),
    ("OSError: [Errno 27] File too large", "storage", "resume"),
    ("OSError: [Errno 122] Disk quota exceeded", "storage", "resume"),
    ("OSError: [Errno 116] Stale file handle", "storage", "resume"),
    ("slurmstepd: error: Detected 1 oom-kill event(s)", "host_oom", "resume"),
    ("OSError: [Errno 12] Cannot allocate memory", "host_oom", "resume"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=12.0", "host_oom", "resume"),
    ("srun: error: node1: task 0: Out Of Memory", "host_oom", "resume"),
    ("slurmstepd: error: Job 12 exceeded memory limit (5 > 4)", "host_oom", "resume"),
    ("DefaultCPUAllocator: can't allocate memory: you tried", "host_oom", "resume"),
    ("terminate called after throwing 'std::bad_alloc'", "host_oom", "resume"),
    ("_ArrayMemoryError: Unable to allocate 7.45 GiB", "host_oom", "resume"),
    ("pyarrow.lib.ArrowMemoryError: malloc of size 8 failed", "host_oom", "resume"),
    ("RuntimeError: CUDA error: out of memory", "device_oom", "smaller"),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "device_oom", "smaller"),
    ("ncclUnhandledCudaError: Cuda failure 2 'out of memory'", "device_oom", "smaller"),
    ("[Errno 107] Transport endpoint is not connected: '/x'", "storage", "resume"),
    ("/tmp/ray/session is over 95.2% full, available space", "storage", "resume"),
    ("ray.exceptions.ActorDiedError: The actor died", "worker_lost", "resume"),
    ("Connection closed by peer [127.0.0.1]:4242", "worker_lost", "resume"),
    ("Failed to connect to GCS at 127.0.0.1:6379", "ray_lost", "resume"),
)


@pytest.mark.parametrize(
    ("end", "cause", "action"), [e[1:] for e in FIRST_ENDS], ids=[e[0] for e in FIRST_ENDS]
)
def test_a_first_end(end: Ending, cause: str, action: str) -> None:
    decision = decide(end, Past())
    assert (decision.cause, decision.action) == (cause, action)
    assert decision.reason


@pytest.mark.parametrize(("line", "cause", "action"), SIGNS, ids=[s[0][:30] for s in SIGNS])
def test_signs_in_the_log(line: str, cause: str, action: str) -> None:
    decision = decide(ending(log_tail=f"a\n{line}\nb\n"), Past())
    assert (decision.cause, decision.action) == (cause, action)


@pytest.mark.parametrize("cause", [Cause.ERROR, Cause.WORKER_LOST])
def test_foreign_words_say_more_than_a_vague_cause(cause: Cause) -> None:
    vague = ending(cause=cause, log_tail="CUDA out of memory")
    assert decide(vague, Past()).cause is Cause.DEVICE_OOM


def test_foreign_words_say_less_than_an_exact_cause() -> None:
    exact = ending(cause=Cause.NONFINITE, log_tail="CUDA out of memory")
    assert decide(exact, Past()).cause is Cause.NONFINITE


@pytest.mark.parametrize(
    "line",
    [
        "comm_hang: rank 1",
        "nonfinite: train step 7",
        "bad_data: no speech",
        "the store is out of reach",
        "none of 2 checkpoints verifies",
        "rank 1 ended by signal 9",
    ],
)
def test_words_of_ours_in_a_log_decide_nothing(line: str) -> None:
    assert decide(ending(log_tail=line), Past()).cause is Cause.ERROR


def test_a_signal_says_more_than_the_log() -> None:
    assert decide(ending(exit_code=-9, log_tail="CUDA out of memory"), Past()).cause == "killed"


@pytest.mark.parametrize(
    ("code", "said", "cause"),
    [
        (-6, "what():  std::bad_alloc", Cause.HOST_OOM),
        (-6, "terminate called", Cause.KILLED),
        (-7, "", Cause.STORAGE),
        (-7, "RuntimeError: No space left on device", Cause.STORAGE),
        (-11, "Detected 1 oom_kill event", Cause.HOST_OOM),
    ],
)
def test_a_process_that_ends_itself_has_said_why(code: int, said: str, cause: Cause) -> None:
    assert decide(ending(exit_code=code, log_tail=said), Past()).cause is cause


def test_the_same_end_twice_without_progress_stops() -> None:
    past = Past(attempts=[("error", 3.0, "n1")])
    assert decide(ending(progress=3.0), past) == Decision(
        cause="error", action="stop", reason="ended 2 times as error without progress"
    )


@pytest.mark.parametrize(
    ("past", "progress"),
    [
        ([("error", 3.0, "n1")], 4.0),  # progress since
        ([("killed", 3.0, "n1")], 3.0),  # another cause
        ([("error", 3.0, "n1"), ("killed", 3.0, "n1")], 3.0),  # not in a row
    ],
)
def test_what_is_not_the_same_end_twice(
    past: list[tuple[str, float, str]], progress: float
) -> None:
    assert decide(ending(progress=progress), Past(attempts=past)).action == "resume"


def test_preemptions_without_progress_are_no_fault_and_yet_spend_the_budget() -> None:
    past = [("preempted", 3.0, "n1")] * 3
    assert decide(ending(exit_code=143, progress=3.0), Past(attempts=past)).action == "resume"
    spent = decide(ending(exit_code=143, progress=3.0), Past(attempts=past, max_attempts=3))
    assert spent.reason == "budget of 3 attempts is spent"


def test_a_walltime_too_short_for_any_progress_stops() -> None:
    past = Past(attempts=[("walltime", 3.0, "n1")])
    over = ending(exit_code=143, progress=3.0, stopped="walltime")
    assert (decide(over, past).cause, decide(over, past).action) == ("walltime", "stop")


def test_a_node_that_fails_alone_is_left_and_a_program_that_fails_is_not() -> None:
    lost = {"exit_code": 1, "progress": 3.0, "others": True}
    past = Past(attempts=[("worker_lost", 3.0, "n1")])
    died = ending(cause=Cause.WORKER_LOST, **lost)
    assert decide(died, past).action == "elsewhere"
    elsewhere = Past(attempts=[("worker_lost", 3.0, "n2")])
    assert decide(died, elsewhere).action == "stop"
    raised = ending(log_tail="KeyError: 'x'", **lost)
    assert decide(raised, Past(attempts=[("error", 3.0, "n1")])).action == "stop"


def test_the_budget_of_attempts() -> None:
    past = [("error", float(n), "n1") for n in range(1, 4)]
    spent = decide(ending(progress=9.0), Past(attempts=past, max_attempts=4))
    assert spent == Decision(cause="error", action="stop", reason="budget of 4 attempts is spent")
    assert decide(ending(progress=9.0), Past(attempts=past, max_attempts=5)).action == "resume"


def test_preemptions_that_make_progress_are_free() -> None:
    past = [("preempted", float(n), "n1") for n in range(1, 100)]
    end = ending(exit_code=143, progress=100.0)
    assert decide(end, Past(attempts=past, max_attempts=2)).action == "resume"


def test_a_node_that_fails_while_another_gets_further_is_avoided() -> None:
    past = Past(attempts=[("killed", 1.0, "bad"), ("error", 5.0, "good")])
    decision = decide(ending(node="bad", exit_code=-9, progress=5.0), past)
    assert (decision.action, decision.reason) == ("elsewhere", "node bad fails alone")


def test_a_node_that_fails_like_the_others_is_not() -> None:
    past = Past(attempts=[("killed", 1.0, "n1"), ("error", 1.0, "n2")])
    assert decide(ending(node="n1", exit_code=-9, progress=2.0), past).action == "resume"


def test_waiting_for_another_run_costs_nothing() -> None:
    past = Past(attempts=[("lease_held", 0.0, "n1")] * 50, max_attempts=2)
    assert decide(ending(exit_code=75), past).action == "wait"


def test_a_micro_batch_is_halved_as_often_as_it_takes() -> None:
    past = Past(attempts=[("device_oom", 0.0, "n1")] * 3)
    said = ending(exit_code=1, log_tail="CUDA out of memory", progress=0.0)
    assert decide(said, past).action == "smaller"
