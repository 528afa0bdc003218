"""The cluster the other tests stand on: machines of their own, preemption, lost nodes, an end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import wait_for

NO_GRACE = "gracetime=0"
"""The end of a grace is looked for every 30 s only; without one, preemption is at once."""


@pytest.fixture
def at_once(slurm: SlurmCluster) -> Iterator[None]:
    """Preemption without a grace."""
    for name in ("low", "cancel"):
        slurm.run("scontrol", "update", f"partitionname={name}", NO_GRACE)
    yield
    for name in ("low", "cancel"):
        slurm.run("scontrol", "update", f"partitionname={name}", f"gracetime={slurm.grace_s}")


def sleep_on(slurm: SlurmCluster, node: str, *words: str, script: str = "sleep 300") -> str:
    """The id of a job that has begun to sleep on a node."""
    argv = ("sbatch", "--parsable", f"--nodelist={node}", "--output=/dev/null", *words)
    job = slurm.run(*argv, f"--wrap={script}").strip()
    await_states(slurm, job, "RUNNING")
    wait_for(lambda: slurm.job_processes(node), f"processes on {node}", timeout_s=20)
    return job


def await_states(slurm: SlurmCluster, job: str, *states: str) -> None:
    """Wait until the accounting names these states, one for each life of a job."""
    wait_for(
        lambda: [state.split()[0] for _, state in slurm.books(job)] == list(states),
        f"{states} of job {job}",
        timeout_s=40,
    )


def test_all_nodes_are_idle_and_have_their_devices(slurm: SlurmCluster) -> None:
    states = slurm.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T %G")
    assert states.split("\n")[:-1] == [f"{node} idle gpu:2" for node in slurm.nodes]
    said = slurm.run("srun", "--gres=gpu:2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert said.strip() == "0,1"


def test_every_node_is_a_machine_of_its_own(slurm: SlurmCluster) -> None:
    if not slurm.has_own_networks:
        pytest.skip("nodes share this machine's network: namespaces need root")
    script = f"touch {slurm.scratch}/$(hostname); ls {slurm.scratch}; readlink /proc/self/ns/net"
    said = slurm.run("srun", "--nodes=4", "--ntasks=4", "--label", "sh", "-c", script)
    lines = [line.split(": ", 1) for line in said.splitlines()]
    seen = [[text for task, text in lines if task == str(n)] for n in range(4)]
    assert [files for files, _ in seen] == slurm.nodes, "a host name and a scratch each"
    assert len({network for _, network in seen}) == 4
    for node in slurm.nodes:
        (slurm.folder / "scratches" / node / node).unlink()


def test_nodes_reach_each_other_by_name(slurm: SlurmCluster) -> None:
    if not slurm.has_own_networks:
        pytest.skip("nodes share this machine's network: namespaces need root")
    talk = (
        "import os, socket, time\n"
        "if os.environ['SLURM_PROCID'] == '1':\n"
        "    peer, _ = socket.create_server(('', 5000)).accept()\n"
        "    peer.sendall(socket.gethostname().encode())\n"
        "else:\n"
        "    for _ in range(100):\n"
        "        try:\n"
        "            print(socket.create_connection(('node3', 5000), 5).recv(99).decode())\n"
        "            break\n"
        "        except OSError:\n"
        "            time.sleep(0.1)\n"
    )
    nodes = ("--nodes=2", "--ntasks=2", "--nodelist=node2,node3")
    python = shutil.which("python3", path=os.defpath) or "python3"
    assert slurm.run("srun", *nodes, python, "-c", talk).strip() == "node3"


@pytest.mark.usefixtures("at_once")
def test_high_takes_a_node_from_low_whose_job_runs_again(slurm: SlurmCluster) -> None:
    job = sleep_on(slurm, "node2", "--partition=low")
    slurm.occupy("node2", seconds=2)
    await_states(slurm, job, "PREEMPTED", "RUNNING")


@pytest.mark.usefixtures("at_once")
def test_high_ends_a_job_of_cancel_for_good(slurm: SlurmCluster) -> None:
    job = sleep_on(slurm, "node2", "--partition=cancel")
    slurm.occupy("node2", seconds=1)
    await_states(slurm, job, "PREEMPTED")
    wait_for(lambda: slurm.queue() == [], "an empty queue", timeout_s=20)


def test_a_node_without_power_says_nothing_until_it_boots(slurm: SlurmCluster) -> None:
    script = "setsid env --ignore-environment sleep 301 & sleep 300"
    job = sleep_on(slurm, "node2", script=script)
    other = sleep_on(slurm, "node3")
    slurm.kill_node("node2")
    assert slurm.job_processes("node2") == []
    assert sleepers("301") == [], "not even what hides from its job"
    assert {row.id: row.state for row in slurm.queue()} == {job: "RUNNING", other: "RUNNING"}
    slurm.set_node("node2", "down")  # the controller would need another half a minute to see it
    slurm.start_node("node2")
    await_states(slurm, job, "NODE_FAIL", "RUNNING")
    assert slurm.books(other) == [(other, "RUNNING")], "a node dies alone"


def test_jobs_outlive_a_controller_that_is_away(slurm: SlurmCluster) -> None:
    job = sleep_on(slurm, "node2")
    slurm.stop_controller()
    assert slurm.job_processes("node2")
    slurm.start_controller()
    assert [(row.id, row.state) for row in slurm.queue()] == [(job, "RUNNING")]


def test_only_what_goes_through_the_login_node_is_counted(slurm: SlurmCluster) -> None:
    slurm.run("squeue", "--noheader", "--format=%i|%j")
    slurm.queue()
    slurm.run("srun", "true")
    assert slurm.commands() == ["squeue --noheader --format=%i|%j", "srun true"]
    slurm.forget()
    assert slurm.commands() == []


def test_nothing_is_left_of_a_cluster_that_was_stopped() -> None:
    cluster = SlurmCluster.start(num_nodes=1)
    hidden = "setsid env --ignore-environment sleep 302 & sleep 300"
    sleep_on(cluster, "node1", script=hidden)
    conf, traces = cluster.env["SLURM_CONF"], [cluster.folder, *network_traces(cluster)]
    assert all(path.exists() for path in traces)
    cluster.stop()
    cluster.stop()
    left = [p.cmdline() for p in alive() if p.environ().get("SLURM_CONF") == conf]
    assert left == []
    assert sleepers("302") == []
    assert [path for path in traces if path.exists()] == []


def network_traces(cluster: SlurmCluster) -> list[Path]:
    """Where the system shows what belongs to a cluster's networks."""
    if not cluster.has_own_networks:
        return []
    spaces = [entry for entry in Path("/run/netns").iterdir() if cluster.token in entry.name]
    links = [entry for entry in Path("/sys/class/net").iterdir() if cluster.token in entry.name]
    return [*spaces, *(Path("/etc/netns", entry.name) for entry in spaces), *links]


def sleepers(seconds: str) -> list[int]:
    """Who sleeps that long, wherever it hides."""
    return [p.pid for p in alive() if p.cmdline() == ["sleep", seconds]]


def alive() -> Iterator[psutil.Process]:
    """This user's processes; those that end meanwhile are left out."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ() is not None:
                yield process
        except psutil.Error:
            continue
