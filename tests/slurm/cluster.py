"""A real Slurm cluster on this machine: controller, nodes, munge, and books in a MariaDB.

As root every node has a network namespace, a host name and a scratch folder of its own, so that
what works here does not work by being one machine. Started and ended by pid; nothing outlives it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

CLIENTS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "srun")
DAEMONS = ("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd", "mariadb-install-db")
START_TIMEOUT_S = 60.0
"""The last resort: a cluster is up in three seconds."""

_CONF = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket={folder}/run/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PriorityType=priority/basic
Prolog={folder}/prolog
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
MinJobAge=300
MaxArraySize={max_array}
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=10
TCPTimeout=2
MessageTimeout=10
ReturnToService=2
TreeWidth=50
SlurmdParameters=config_overrides
GresTypes=gpu
{books}
{nodes}
PartitionName=DEFAULT Nodes=ALL DefaultTime=60 PriorityTier=1 {partitions}
PartitionName=low Default=YES PreemptMode=REQUEUE GraceTime={grace_s}
PartitionName=cancel PreemptMode=CANCEL GraceTime={grace_s}
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""
_BOOKS = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/run/munge.socket
AccountingStoreFlags=job_comment"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""
_SCRIPT_NAMES = {"JobSubmitPlugins": "job_submit.lua", "CliFilterPlugins": "cli_filter.lua"}
"""Where Slurm looks for each kind of plugin, beside slurm.conf."""
_SHIM = """\
#!/bin/sh
# Notes that the command was run, and runs it.
echo "{name} $*" >> "{log}"
exec "{real}" "$@"
"""


class Row(NamedTuple):
    """A line of the queue."""

    id: str
    name: str
    state: str
    nodes: str


def missing() -> list[str]:
    """Programs that a cluster needs and that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in (*CLIENTS, *DAEMONS) if shutil.which(name, path=path) is None]


@dataclass
class SlurmCluster:
    """Four nodes of eight cores and two pretended GPUs each, and partitions high, low, cancel.

    Jobs of ``high`` take nodes away from those of the others: back to the queue from ``low``, for
    good from ``cancel``.
    """

    folder: Path
    num_nodes: int = 4
    cpus: int = 8
    mem_mb: int = 8000
    grace_s: int = 10
    max_array: int = 1001
    has_books: bool = True
    """Without: no slurmdbd, and a job that left the queue is known to nobody."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """A site's own lines of slurm.conf, in place of those here: ``{"MinJobAge": "10"}``."""
    partitions: str = "DefMemPerCPU=100"
    """What all partitions have in common."""
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Plugins in Lua, by their place in slurm.conf: ``JobSubmitPlugins``, ``CliFilterPlugins``."""
    port: int = field(default_factory=lambda: free_ports(20))
    subnet: str = field(default_factory=lambda: free_subnet())
    token: str = field(default_factory=lambda: secrets.token_hex(3))
    _database: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, **options: Any) -> SlurmCluster:
        """A cluster that is up, in a folder short enough for Unix sockets."""
        cluster = cls(Path(tempfile.mkdtemp(prefix="slurm-")), **options)
        try:
            cluster._start()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return [f"node{n}" for n in range(1, self.num_nodes + 1)]

    @property
    def has_own_networks(self) -> bool:
        """Whether every node has an address of its own: as root, outside of most containers."""
        return may_make_networks()

    @property
    def scratch(self) -> Path:
        """Under this path every node has a folder of its own."""
        return self.folder / "scratch"

    @property
    def env(self) -> dict[str, str]:
        """The surroundings of a login node."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def run(self, *words: str, check: bool = True) -> str:
        """What a client command prints."""
        done = subprocess.run(
            words, env=self.env, capture_output=True, text=True, timeout=90, check=False
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def queue(self) -> list[Row]:
        """The queue, job by job."""
        lines = self._ask("squeue", "--noheader", "--array", "--format=%i|%j|%T|%N").splitlines()
        return [Row(*line.split("|")) for line in lines]

    def books(self, *job_ids: str) -> list[tuple[str, str]]:
        """Id and state of every life of some jobs, oldest first."""
        words = (
            "sacct",
            "-X",
            "-D",
            "-P",
            "-n",
            "-o",
            "Start,JobID,State",
            "-j",
            ",".join(job_ids),
        )
        rows = sorted(line.split("|") for line in self._ask(*words).splitlines())
        return [(job_id, state) for _, job_id, state in rows]

    def commands(self) -> list[str]:
        """Every scheduler command that was run from a login node since the last `forget`."""
        log = self.folder / "commands.log"
        return log.read_text().splitlines() if log.exists() else []

    def forget(self) -> None:
        """Forget the commands run so far."""
        (self.folder / "commands.log").unlink(missing_ok=True)

    def occupy(self, *nodes: str, seconds: int) -> str:
        """Take whole nodes with a job that comes before all others; its id."""
        words = ("--partition=high", "--exclusive", "--time=5", f"--nodes={len(nodes)}")
        said = self._ask(
            *("sbatch", "--parsable", *words, f"--nodelist={','.join(nodes)}"),
            *("--output=/dev/null", f"--wrap=sleep {seconds}"),
        )
        return said.strip()

    def kill_node(self, name: str) -> None:
        """The node loses its power: its daemon and all of its jobs' processes die at once."""
        self._end(f"slurmd.{name}", signal.SIGKILL)
        self._kill_jobs(name)

    def start_node(self, name: str) -> None:
        """Let the node boot."""
        argv = ["slurmd", "-f", str(self.folder / "slurm.conf"), "-N", name]
        if self.has_own_networks:
            own = self.folder / "scratches" / name
            script = f'hostname {name} && mount --bind "{own}" "{self.scratch}" && exec "$@"'
            argv = [
                *("ip", "netns", "exec", self._namespace(name), "unshare", "--uts", "--mount"),
                *("sh", "-c", script, "sh", *argv),
            ]
        self._daemon(argv)

    def spoil_node(self, name: str) -> None:
        """Let the node fail to start jobs, as one with a broken driver or mount does."""
        (self.folder / f"spoilt-{name}").touch()

    def mend_node(self, name: str) -> None:
        """What an administrator does after that."""
        (self.folder / f"spoilt-{name}").unlink(missing_ok=True)
        self._ask("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def set_node(self, name: str, state: str) -> None:
        """What an administrator does to a node: ``down``, ``drain``, ``resume``."""
        self._ask("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")

    def stop_controller(self) -> None:
        """End slurmctld; it saves its state."""
        self._end("slurmctld", signal.SIGTERM)

    def start_controller(self, *words: str) -> None:
        """Start slurmctld; it reads what it saved."""
        self._daemon(["slurmctld", "-f", str(self.folder / "slurm.conf"), *words])
        self._wait(lambda: self._ask("scontrol", "ping", check=False).find("UP") > 0, "controller")

    def stop_books(self) -> None:
        """End slurmdbd."""
        self._end("slurmdbd", signal.SIGTERM)

    def start_books(self) -> None:
        """Start slurmdbd."""
        self._daemon(["slurmdbd"])
        self._wait(lambda: is_listening(self.port + 1), "slurmdbd")

    def job_processes(self, node: str | None = None) -> list[psutil.Process]:
        """Processes of this cluster's jobs and the slurmstepd above them, on one node or all."""
        nodes = self.nodes if node is None else [node]
        return self._by_network(nodes) if self.has_own_networks else self._by_job(nodes)

    def repair(self) -> None:
        """End all jobs and bring back what a test has broken."""
        if not self._pid("slurmctld"):
            self.start_controller()
        if self.has_books and not self._pid("slurmdbd"):
            self.start_books()
        self._ask("scancel", "--full", f"--user={os.geteuid()}", check=False)
        for name in self.nodes:
            if not self._pid(f"slurmd.{name}"):
                self.start_node(name)
        for name in self.nodes:
            self.mend_node(name)
        self._wait(lambda: not self.queue() and self._idle() == self.num_nodes, "idle nodes")

    def stop(self) -> None:
        """End everything, and remove the folder."""
        if self._pid("slurmctld"):
            self._ask("scancel", "--full", f"--user={os.geteuid()}", check=False)
            time.sleep(0.3)
        for name in (*(f"slurmd.{n}" for n in self.nodes), "slurmctld", "slurmdbd"):
            self._end(name, signal.SIGTERM)
        self._kill_jobs()
        for name in ("mariadbd", "munged"):
            self._end(name, signal.SIGTERM)
        if self._database:
            self._database.wait()
        if self.has_own_networks:
            for name in self.nodes:
                quietly("ip", "netns", "delete", self._namespace(name))
                shutil.rmtree(f"/etc/netns/{self._namespace(name)}", ignore_errors=True)
            quietly("ip", "link", "delete", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        for name in ("state", "run", "log", "dev", "bin", "munge", "scratch", "scratches", "db"):
            (self.folder / name).mkdir(mode=0o700 if name == "munge" else 0o755)
        self.folder.chmod(0o755)
        for name in self.nodes:
            (self.folder / "spool" / name).mkdir(parents=True)
            (self.folder / "scratches" / name).mkdir()
        if self.has_own_networks:
            self._make_networks()
        self._write_configuration()
        self._start_munge()
        if self.has_books:
            self._start_database()
            self.start_books()
            self._wait(self._register, "the cluster in the books")
        self.start_controller("-c")
        for name in self.nodes:
            self.start_node(name)
        self._wait(lambda: self._idle() == self.num_nodes, "idle nodes")

    def _write_configuration(self) -> None:
        host, user = socket.gethostname().split(".")[0], psutil.Process().username()
        common = {"folder": self.folder, "host": host, "user": user}
        text = _CONF.format(
            **common,
            name=f"test{self.token}",
            address=self._controller_address,
            port=self.port,
            max_array=self.max_array,
            grace_s=self.grace_s,
            books=_BOOKS.format(folder=self.folder, port=self.port + 1) if self.has_books else "",
            nodes="\n".join(self._node_lines(host)),
            partitions=self.partitions,
        )
        (self.folder / "slurm.conf").write_text(self._as_the_site_has_it(text))
        prolog = self.folder / "prolog"
        prolog.write_text(f'#!/bin/sh\n[ ! -e "{self.folder}/spoilt-$SLURMD_NODENAME" ]\n')
        prolog.chmod(0o755)
        books = self.folder / "slurmdbd.conf"
        books.touch(mode=0o600)
        books.write_text(
            _SLURMDBD.format(**common, port=self.port + 1, database_port=self.port + 2)
        )
        (self.folder / "gres.conf").write_text(f"Name=gpu {self._devices()}\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in CLIENTS:
            shim = self.folder / "bin" / name
            real = shutil.which(name)
            shim.write_text(_SHIM.format(name=name, log=self.folder / "commands.log", real=real))
            shim.chmod(0o755)

    def _as_the_site_has_it(self, text: str) -> str:
        """The configuration with the site's lines in place of those of the same name."""
        own = {**dict.fromkeys(self.scripts, "lua"), **self.settings}
        for plugin, script in self.scripts.items():
            (self.folder / _SCRIPT_NAMES[plugin]).write_text(script)
        kept = [line for line in text.splitlines() if line.partition("=")[0] not in own]
        return "\n".join([*(f"{name}={value}" for name, value in own.items()), *kept, ""])

    def _node_lines(self, host: str) -> Iterator[str]:
        for number, name in enumerate(self.nodes, 1):
            own = self.has_own_networks
            yield (
                f"NodeName={name} NodeHostname={name if own else host} "
                f"NodeAddr={self._address(number) if own else '127.0.0.1'} "
                f"Port={self.port + 2 + number} CPUs={self.cpus} RealMemory={self.mem_mb} "
                "Gres=gpu:2 State=UNKNOWN"
            )

    def _devices(self) -> str:
        """Slurm wants device files that end in a number; it never opens them here."""
        try:
            for number in range(2):
                os.mknod(self.folder / "dev" / f"gpu{number}", 0o020666, os.makedev(1, 3))
        except PermissionError:
            return "File=/dev/tty[0-1]" if Path("/dev/tty1").exists() else "Count=2"
        return f"File={self.folder}/dev/gpu[0-1]"

    def _make_networks(self) -> None:
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self._controller_address}/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        hosts = [f"{self._address(n)} {name}" for n, name in enumerate(self.nodes, 1)]
        hosts += ["127.0.0.1 localhost", f"{self._controller_address} {socket.gethostname()}"]
        for number, name in enumerate(self.nodes, 1):
            space, wire = self._namespace(name), f"v{self.token}{number}"
            run("ip", "netns", "add", space)
            inside = ("peer", "name", "eth0", "netns", space)
            run("ip", "link", "add", wire, "type", "veth", *inside)
            run("ip", "link", "set", wire, "master", self._bridge, "up")
            run("ip", "-n", space, "addr", "add", f"{self._address(number)}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            etc = Path("/etc/netns", space)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text("\n".join([*hosts, ""]))

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        places = {
            "key-file": key,
            "socket": self.folder / "run" / "munge.socket",
            "pid-file": self.folder / "run" / "munged.pid",
            "log-file": self.folder / "munge" / "munged.log",
            "seed-file": self.folder / "munge" / "seed",
        }
        self._daemon(["munged", "--force", *(f"--{name}={path}" for name, path in places.items())])

    def _start_database(self) -> None:
        user, data = psutil.Process().username(), self.folder / "db"
        common = ("--no-defaults", f"--datadir={data}", f"--user={user}")
        quietly(
            *("mariadb-install-db", *common, "--skip-test-db"),
            "--auth-root-authentication-method=normal",
            env=self.env,
        )
        first = self.folder / "first.sql"
        first.write_text(
            "CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON *.* TO 'slurm'@'127.0.0.1';\n"
        )
        with (self.folder / "log" / "mariadbd.log").open("wb") as log:
            self._database = subprocess.Popen(
                [
                    *("mariadbd", *common, f"--init-file={first}", "--skip-name-resolve"),
                    f"--socket={self.folder}/run/mysql.sock",
                    f"--pid-file={self.folder}/run/mariadbd.pid",
                    *(f"--port={self.port + 2}", "--bind-address=127.0.0.1"),
                    *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M"),
                    *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"),
                    *("--performance-schema=OFF", "--max-allowed-packet=16M"),
                ],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait(lambda: is_listening(self.port + 2), "the database")

    def _register(self) -> bool:
        said = subprocess.run(
            ["sacctmgr", "-i", "add", "cluster", f"test{self.token}"],
            env=self.env,
            capture_output=True,
            text=True,
        )
        return said.returncode == 0 or "already exists" in said.stdout

    def _idle(self) -> int:
        words = ("--noheader", "--Node", "--partition=low", "--states=idle", "--format=%N")
        return len(self._ask("sinfo", *words, check=False).split())

    def _ask(self, *words: str, check: bool = True) -> str:
        """A command that is not counted."""
        real = shutil.which(words[0]) or words[0]
        return self.run(real, *words[1:], check=check)

    def _daemon(self, argv: Sequence[str]) -> None:
        """Start what puts itself into the background; it must not hold on to our streams."""
        with (self.folder / "log" / "daemons.log").open("ab") as log:
            subprocess.run(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
            )

    def _end(self, name: str, number: int) -> None:
        """End a daemon; its pid may be another process's soon, so the file goes as well."""
        end(self._pid(name), number)
        (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def _kill_jobs(self, node: str | None = None) -> None:
        """End a node's jobs, or all, and what they start meanwhile."""
        while left := self.job_processes(node):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)

    def _by_network(self, nodes: Sequence[str]) -> list[psutil.Process]:
        """All that lives in the nodes' networks: no environment or session hides a process here."""
        spaces = [Path("/run/netns", self._namespace(name)) for name in nodes]
        inside = {path.stat().st_ino for path in spaces if path.exists()}
        daemons = {self._pid(f"slurmd.{name}") for name in nodes}
        return [
            process
            for process in psutil.process_iter()
            if process.pid not in daemons and network_of(process.pid) in inside
        ]

    def _by_job(self, nodes: Sequence[str]) -> list[psutil.Process]:
        """Processes with a job's environment, and the slurmstepd above them, which has none."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                if env.get("SLURM_CONF") == self.env["SLURM_CONF"] and (
                    env.get("SLURMD_NODENAME") in nodes
                ):
                    above = [p for p in process.parents() if p.name() == "slurmstepd"]
                    found |= {p.pid: p for p in (process, *above) if is_alive(p)}
        return list(found.values())

    def _pid(self, name: str) -> int | None:
        """The daemon's process, if it lives."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            alive = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return pid if alive else None

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: not there; logs in {self.folder}/log"
            time.sleep(0.1)

    def _namespace(self, node: str) -> str:
        return f"slurm{self.token}-{node}"

    @property
    def _bridge(self) -> str:
        return f"br{self.token}"

    @property
    def _controller_address(self) -> str:
        return f"{self.subnet}.1" if self.has_own_networks else "127.0.0.1"

    def _address(self, number: int) -> str:
        return f"{self.subnet}.{10 + number}"


@contextlib.contextmanager
def running(**options: Any) -> Iterator[SlurmCluster]:
    """A cluster that is ended even where a SIGTERM ends the tests."""

    def leave(number: int, _frame: object) -> None:
        pytest.exit("SIGTERM", returncode=128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    cluster = SlurmCluster.start(**options)
    try:
        yield cluster
    finally:
        cluster.stop()
        signal.signal(signal.SIGTERM, before)
    assert cluster.job_processes() == []


def end(pid: int | None, number: int, timeout_s: float = 10.0) -> None:
    """End a process; the hard way when it does not heed the signal."""
    if pid is None:
        return
    process = psutil.Process(pid)
    process.send_signal(number)
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() > deadline:
            process.kill()
            return
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def quietly(*words: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(words, check=False, capture_output=True, env=env)


@functools.cache
def may_make_networks() -> bool:
    """Whether this user may make network namespaces and give them host names."""
    probe = f"slurm{secrets.token_hex(3)}-probe"
    try:
        run("ip", "netns", "add", probe)
        run("ip", "netns", "exec", probe, "unshare", "--uts", "--mount", "true")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    finally:
        if Path("/run/netns", probe).exists():
            quietly("ip", "netns", "delete", probe)
    return True


def network_of(pid: int) -> int | None:
    """Which network a process lives in; None for one that is gone or another user's."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker_lane() -> int:
    """This xdist worker's number, of four: workers choose among ports and subnets of their own."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:  # below the ports that clients get
        first = 20_000 + (30 * worker_lane() + secrets.randbelow(30)) * 100
        if not any(is_listening(port) for port in range(first, first + count)):
            return first


def free_subnet() -> str:
    """The first three numbers of addresses that no interface here has."""
    used = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses]
    while True:
        subnet = f"10.{20 + 50 * worker_lane() + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        if not any(address.startswith(f"{subnet}.") for address in used):
            return subnet
