"""The cluster: where stages run, where data and the store lie, what may be spent.

Changes no result.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from orchestrator.spec.model import (
    Argument,
    Count,
    Image,
    Int,
    LauncherFile,
    Line,
    Location,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Reference,
    Spec,
    Word,
    variable_in,
)

StageName = Literal[
    "corpus",
    "filter",
    "targets",
    "pretrain",
    "encoder",
    "codebook",
    "unit_quality",
    "tokenize",
    "pack",
    "train",
    "perplexity",
    "continuations",
    "suite_units",
    "suite_scores",
]
"""The stages of `plan.stages`, which the layers above this one describe."""
RETIRED = "evaluate"
"""A stage that runs of earlier versions have; its work is now perplexity and continuations."""


def _node_name(value: str) -> str:
    stages = get_args(StageName)
    stage, _, part = value.partition(".")
    if stage == RETIRED:
        raise ValueError("is now one stage for each score; write perplexity and continuations")
    if stage not in stages:
        close = difflib.get_close_matches(stage, stages, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(stages)}"
        raise ValueError(f"no such stage; {hint}")
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", value):
        raise ValueError(f"{part!r} names no node; write {stage}, or {stage}.NAME")
    return value


NodeName = Annotated[
    str,
    AfterValidator(_node_name),
    WithJsonSchema(
        {"type": "string", "pattern": rf"^({'|'.join(get_args(StageName))})(\.[a-z0-9_]+)?$"}
    ),
]
"""A stage, or one node of it: ``tokenize``, ``tokenize.sblimp``."""


class NodeRange(Spec):
    """How few and how many nodes a training may have, where some are not there."""

    min: PositiveInt
    """Fewest; with fewer it waits."""
    max: PositiveInt
    """Most."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


def _is_range(value: Any) -> str:
    return "constrained-range" if isinstance(value, dict | NodeRange) else "constrained-number"


Nodes = Annotated[
    Annotated[PositiveInt, Tag("constrained-number")]
    | Annotated[NodeRange, Tag("constrained-range")],
    Discriminator(_is_range),
]
"""A number, or a range; what is wrong with one is not said of the other."""


class Resources(Spec):
    """What one stage asks of the scheduler."""

    nodes: Nodes = 1
    """Nodes of a training job; most nodes that a data stage's workers spread over on Slurm. A
    training on Ray or Slurm may have a range, ``{min: 2, max: 4}``: each of its attempts has the
    most that are there and divide the global batch."""
    gpus_per_node: Count = 0
    """Accelerators on each node; 0 computes on CPUs."""
    ranks_per_node: PositiveInt = 1
    """Training ranks on each node where there are no accelerators."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores of one worker or rank; also its intra-op threads."""
    gpu_memory_gb: PositiveFloat | None = None
    """Memory of one accelerator, in GB: 80 for an H100. With it ZeRO stage, micro-batch,
    recomputation and offload of a training are derived where its recipe has no ``execution``; what
    fits no device is refused."""
    gpus_per_worker: PositiveFloat = 1.0
    """Share of an accelerator that one actor of a data stage holds, where gpus_per_node is not 0;
    0.5 puts two on one."""
    mem_gb: PositiveFloat = 4.0
    """Host memory of one node, in GB."""
    walltime_min: PositiveInt = 240
    """Longest run of one job, in minutes."""
    min_workers: PositiveInt = 1
    """Ray actors a data stage starts with."""
    max_workers: PositiveInt = 2
    """Most Ray actors of a data stage."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers ({self.min_workers}) must not be above "
                f"max_workers ({self.max_workers})"
            )
        return self

    @property
    def local_world_size(self) -> int:
        """Training ranks of one node."""
        return self.gpus_per_node or self.ranks_per_node

    @property
    def world_size(self) -> int:
        """Training ranks over all nodes; the most where their number is a range."""
        return self.max_nodes * self.local_world_size

    @property
    def max_nodes(self) -> int:
        """Most nodes."""
        return self.nodes.max if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def min_nodes(self) -> int:
        """Fewest nodes of a training."""
        return self.nodes.min if isinstance(self.nodes, NodeRange) else self.nodes

    @property
    def sizes(self) -> tuple[Resources, ...]:
        """The same with each number of nodes that a training may have, the most first."""
        if not isinstance(self.nodes, NodeRange):
            return (self,)
        numbers = range(self.nodes.max, self.nodes.min - 1, -1)
        return tuple(self.model_copy(update={"nodes": number}) for number in numbers)

    @property
    def workers_per_node(self) -> int:
        """Actors of a data stage on each node, where they are spread over ``nodes``."""
        return -(-self.max_workers // self.max_nodes)


class Retry(Spec):
    """Budgets of the supervisors, which alone start attempts again."""

    max_attempts: PositiveInt = 20
    """Attempts of one stage; those that were taken away after some progress do not count."""
    max_without_progress: PositiveInt = 2
    """Attempts in a row that may end the same way without progress."""
    heartbeat_timeout_s: PositiveFloat = 60.0
    """A lease held on another machine whose heartbeat is older than this is dead; its key may be
    taken over."""
    hang_timeout_s: PositiveFloat = 900.0
    """A rank that does nothing for this long, in seconds, hangs: its attempt is ended and tried
    again. Longer than the longest forward and backward pass."""
    start_timeout_s: PositiveFloat = 3600.0
    """The same before the first step, while models load and compile, in seconds."""
    resize_wait_s: PositiveFloat = 300.0
    """How long a training whose nodes are a range waits for those it had or could have, in seconds,
    before it goes on with fewer. On Slurm it starts with those that it is given, and looks for more
    after so long; twice as long each time that it has asked for them and got none."""
    notice_s: PositiveFloat = 90.0
    """Seconds between a preemption notice and the end: what is saved must be published by then."""
    mtbf_h: PositiveFloat | None = None
    """Mean time between failures of the whole training job, in hours; observed when absent."""


class Environment(Spec):
    """What surrounds the processes that jobs start."""

    setup: tuple[str, ...] = ()
    """Shell lines run before each job, such as ``module load cuda``."""
    venv: Location | None = None
    """Python environment on the nodes; the submitting one when absent."""
    container: Image | None = None
    """Container image that Slurm jobs run in."""
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """What opens the image: ``apptainer exec``, or the pyxis plugin of srun."""
    export: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """Names of variables, such as ``HF_TOKEN``, that must be set where the run is submitted; jobs
    get their values from there, and no script or record holds them."""


_OURS = frozenset(
    {
        *("array", "chdir", "clusters", "comment", "dependency", "error", "export", "export-file"),
        *("job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
        *("open-mode", "output", "parsable", "quiet", "requeue", "signal", "test-only", "wait"),
        *("wrap",),
    }
)
"""Options of sbatch that a cluster file may not set: jobs are recognised and chained by them."""
_NAMED = {
    "cpus-per-task": "cpus",
    "gpus-per-node": "gres",
    "mem": "mem_gb",
    "mem-per-cpu": "memory",
    "mem-per-gpu": "memory",
    "time": "walltime_min",
}
"""Options of sbatch that have another name here."""


MemoryForm = Literal["per_node", "per_cpu", "whole_node", "none"]
"""In what form sbatch is asked for memory."""


class SlurmOptions(Spec):
    """What sbatch is told besides the resources."""

    partition: Word | None = None
    """Partition, or several separated by commas."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features that nodes must have."""
    reservation: Word | None = None
    """Reservation to run in."""
    exclude: tuple[Word, ...] = ()
    """Nodes never to run on."""
    nice: Int | None = None
    """Lowers the priority by this much."""
    gres: Word | None = None
    """Form of the request for accelerators, such as ``gpu:a100``; their number is added. Absent:
    ``--gpus-per-node``."""
    cpus: PositiveInt | None = None
    """CPU cores of each node's job, instead of what the workers add up to."""
    mem_gb: PositiveFloat | None = None
    """Memory of each node's job in GB, instead of the stage's."""
    memory: MemoryForm | None = None
    """How memory is asked for: ``per_node`` (``--mem``; the default), ``per_cpu`` (the same divided
    by the cores, ``--mem-per-cpu``), ``whole_node`` (all that a node has, ``--mem=0``), or ``none``
    where the site wants no such request. `orchestrator doctor` finds out which a site takes."""
    walltime_min: PositiveInt | None = None
    """Longest run of one job in minutes, instead of the stage's."""
    extra: dict[Name, Literal[True] | Line | Int] = Field(default_factory=dict)
    """Any other sbatch option: ``mail-type: FAIL``; ``true`` for one that takes no value."""

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        for name in self.extra:
            option = name.replace("_", "-").lower()
            if (field := _NAMED.get(option, option)) in SlurmOptions.model_fields:
                raise ValueError(f"extra: {name}: say it with {field}")
            if taken := next((o for o in sorted(_OURS) if o.startswith(option)), None):
                raise ValueError(
                    f"extra: {name}: {taken} is what jobs are recognised and chained by; "
                    "leave it out"
                )
            if len(name) == 1:
                raise ValueError(f"extra: {name}: write the option's long name")
        if self.gres and re.search(r":\d+$", self.gres):
            raise ValueError(f"gres: {self.gres}: the number is added; leave it out")
        return self

    def under(self, other: SlurmOptions | None) -> SlurmOptions:
        """These options where ``other`` is silent; ``exclude`` and ``extra`` are united."""
        if other is None:
            return self
        said = {name: getattr(other, name) for name in other.model_fields_set}
        said["exclude"] = tuple(dict.fromkeys((*self.exclude, *other.exclude)))
        said["extra"] = {**self.extra, **other.extra}
        return self.model_copy(update=said)


class Slurm(SlurmOptions):
    """The options of all jobs, and for which jobs they differ."""

    head: SlurmOptions = SlurmOptions()
    """For jobs of one node without accelerators: heads of data stages, and most other stages. Good
    in a partition that is not preempted."""
    workers: SlurmOptions = SlurmOptions()
    """For the workers of data stages, which may be preempted at any time."""
    sentinel: SlurmOptions = SlurmOptions()
    """For the sentinel, over those of ``head``: it asks for one core, 2 GB and an hour, and for
    less memory or time where ``head`` does."""
    stages: dict[NodeName, SlurmOptions] = Field(default_factory=dict)
    """For all jobs of one stage, or of one node of it; said last, so it wins."""
    requeue: bool = True
    """Whether jobs may be put back into the queue; false where the site forbids it: the sentinel
    then submits them anew."""
    max_resumes: Count = 5
    """How often in a row the sentinel, a one-CPU job that starts when another has failed, may
    resume a run that gets no further, before somebody has to look; 0 submits none."""
    idle_timeout_s: PositiveFloat = 300.0
    """How long a worker waits for a head that does not answer, before it gives its node back; a
    head that comes later asks for workers anew."""
    missing_timeout_s: PositiveFloat = 900.0
    """How long the scheduler may know nothing of a job, without a break, before it counts as
    lost."""


def not_shared(store: str) -> str:
    """What is wrong with a store that is no path, where jobs run on Slurm."""
    return (
        f"store: {store} is no path; jobs on Slurm need a folder that all nodes share: name one, "
        "to which `orchestrator resume` moves the runs of a bucket by their URLs"
    )


NODE_GROUP = "ray.io/node-group"
"""Label that Ray itself gives to each node of a cluster that it launches: the node's type."""


def of_types(names: Iterable[str]) -> dict[str, str]:
    """What Ray selects the nodes of some types by."""
    return {NODE_GROUP: f"in({','.join(names)})"}


class NodeType(Spec):
    """What a node of one type has for runs, what it is for and costs; the launcher starts it."""

    cpus: Count = 0
    """CPU cores that Ray hands out on it; 0 for the head, which runs no worker and no rank."""
    gpus: Count = 0
    """Accelerators on it."""
    mem_gb: PositiveFloat
    """Host memory that Ray hands out on it, in GB."""
    labels: dict[Word, Word] = Field(default_factory=dict)
    """Labels that Ray knows it by, such as ``orchestrator/spot: "true"``."""
    used_for: tuple[Literal["data", "training"], ...] = ("data", "training")
    """``data``: workers of data stages; ``training``: ranks; ``[]`` for the head."""
    spot: bool = False
    """Whether the cloud may take it back, after a notice."""
    min_nodes: Count = 0
    """Nodes of it that are there while the cluster is, idle or not; 1 for the head."""
    max_nodes: PositiveInt = 1
    """Most nodes of it at a time."""
    price_hour: NonNegativeFloat | None = None
    """Price of one node for one hour, in the currency of ``prices``; not known when absent."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"min_nodes ({self.min_nodes}) must not be above max_nodes ({self.max_nodes})"
            )
        return self


class Ray(Spec):
    """Where the Ray cluster is that runs are given to, what it has and how long it is waited for.

    Its token, where it asks for one, is looked up as Ray does it: ``RAY_AUTH_TOKEN``, the file that
    ``RAY_AUTH_TOKEN_PATH`` names, ``~/.ray/auth_token``.
    """

    address: Word | None = None
    """``http://host:port`` of its dashboard; ``host:port`` of its head, whose dashboard then is
    there or at port 8265; ``auto`` on the head itself. ``$RAY_ADDRESS`` when absent."""
    tunnel: tuple[Argument, ...] = ()
    """Words of a command that makes the dashboard reachable at ``{port}`` of this machine, such as
    ``[ssh, -N, -L, "{port}:127.0.0.1:8265", head]`` or ``[kubectl, port-forward,
    service/ray-head-svc, "{port}:8265"]``; started for each command and ended after it."""
    launcher: LauncherFile | None = None
    """What `orchestrator cluster up` starts the cluster from: a name, such as ``aws``, of a file
    ``launchers/NAME.yaml`` beside this one, or a path. It is one for ``ray up``, or a RayCluster
    for ``kubectl apply``. Where no address and no tunnel is given, it also tells the way there."""
    node_types: dict[Name, NodeType] = Field(default_factory=dict)
    """The types of nodes, named as in the launcher file, the head's too. What none of them could
    ever hold is refused at submit; when absent, nothing is."""
    pending_deadline_min: PositiveFloat = 240.0
    """How long workers or ranks may wait for nodes while none of their stage has room, in minutes;
    then the stage ends with what Ray says of it."""
    ttl_h: PositiveFloat | None = None
    """How long a run may hold nodes, in hours from its start; then it saves, ends and gives them
    back, and `resume` goes on. No end when absent."""
    idle_release_min: PositiveFloat = 10.0
    """How long a node with accelerators may be without a worker or rank of ours, in minutes, before
    it is reported and given back; only nodes of ``node_types``, and beyond their ``min_nodes``."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.tunnel and self.address:
            raise ValueError("address and tunnel are two ways to one cluster; leave one out")
        if self.tunnel and not any("{port}" in word for word in self.tunnel):
            raise ValueError('tunnel: no word of it says "{port}", where it is to listen')
        if (self.address or "").startswith("ray://"):
            raise ValueError(
                f"address: {self.address} is for Ray's client; give http:// of the dashboard"
            )
        return self


class Prices(Spec):
    """What things take and cost, for estimates."""

    gpu_hour: NonNegativeFloat = 0.0
    """Price of one accelerator for one hour."""
    cpu_hour: NonNegativeFloat = 0.0
    """Price of one CPU core for one hour."""
    gpu_tflops: PositiveFloat | None = None
    """What one accelerator achieves in training, in TFLOP/s: about 40 % of what its maker says."""
    encode_speed: PositiveFloat | None = None
    """Hours of audio that one accelerator turns into units in an hour."""
    currency: str = "USD"
    """Currency of the prices."""


Event = Literal["started", "first_step", "interrupted", "back", "failed", "done"]
"""What people are told of: an attempt that is taken away or ends in an error and is tried again
interrupts its stage."""


class Notify(Spec):
    """Who is told what happens to a run.

    As JSON: ``id`` (the same when sent again), ``run``, ``event``, ``time``, ``text``, and what is
    known beside.
    """

    webhook: Reference | None = None
    """``${env:NAME}``, a variable that holds an address to POST to; set where the run is
    submitted (on a Ray cluster: on its head), and written down nowhere."""
    command: tuple[Argument, ...] = ()
    """Words of a command that is given the JSON on stdin, by the machine that supervises."""
    events: tuple[Event, ...] = get_args(Event)
    """Which events; all when absent."""
    timeout_s: PositiveFloat = 10.0
    """Longest wait for an answer, or for the command's end, in seconds."""
    deadline_s: PositiveFloat = 60.0
    """How long the webhook is tried again while its server is busy or away, in seconds."""

    @model_validator(mode="after")
    def _has_a_hook(self) -> Self:
        if self.model_dump(exclude_defaults=True) and not (self.webhook or self.command):
            raise ValueError("names nobody; give webhook or command")
        return self


class Limits(Spec):
    """What a run may spend, over all its attempts.

    At a limit a training saves, and the run ends with cause ``limit`` until it is resumed with a
    higher one.
    """

    max_gpu_hours: PositiveFloat | None = None
    """Most accelerator hours; no limit when absent."""
    max_price: PositiveFloat | None = None
    """Most money, in the currency of ``prices``, by its ``gpu_hour`` and ``cpu_hour``; no limit
    when absent."""

    @property
    def has_any(self) -> bool:
        """Whether anything is limited."""
        return self.max_gpu_hours is not None or self.max_price is not None


Container = Literal["folder", "tar", "parquet"]


class DataRoot(Spec):
    """Where a source lies."""

    root: Location
    """Its root here (a path, relative to this file)."""
    container: Container = "folder"
    """What its files are in: ``folder``; ``tar``, all uncompressed tars below the root, which are
    read where they are; ``parquet``, a recording in each row."""


def _is_section(value: Any) -> str:
    return "constrained-section" if isinstance(value, dict | DataRoot) else "constrained-root"


DataPlace = Annotated[
    Annotated[Location, Tag("constrained-root")] | Annotated[DataRoot, Tag("constrained-section")],
    Discriminator(_is_section),
]
"""A root alone, or a section; what is wrong with one is not said of the other."""


class Cluster(Spec):
    """Where a recipe runs. All but ``backend`` and ``store`` have defaults."""

    backend: Literal["local", "slurm", "ray", "fake"]
    """What starts processes."""
    store: Location
    """URL of the store: a path (relative to this file), ``s3://`` or ``gs://``."""
    data: dict[Name, DataPlace] = Field(default_factory=dict)
    """Source name to its root here (a path, relative to this file), or to root and container."""
    models: dict[str, Location] = Field(default_factory=dict)
    """Model name to a local folder in Hugging Face format (relative to this file), for clusters
    without a hub."""
    resources: dict[NodeName, Resources] = Field(default_factory=dict)
    """What each stage asks for, or one node of it where it asks for something else than its stage;
    what is not named here gets the defaults."""
    scratch: Location | None = None
    """Node-local folder (relative to this file) for checkpoints on their way to the store, and for
    what k-means finds no memory for; the system's temporary folder when absent."""
    launcher: Literal["ray_train", "submitit"] | None = None
    """What starts the ranks of training; absent: submitit on Slurm, else Ray Train."""
    cpus: PositiveInt | None = None
    """CPU cores the local backend may use at a time; all of this machine's when absent."""
    environment: Environment = Environment()
    """What surrounds the jobs' processes."""
    slurm: Slurm = Slurm()
    """What Slurm is told, where that is the backend."""
    ray: Ray = Ray()
    """Where the Ray cluster is, where that is the backend."""
    retry: Retry = Retry()
    """Budgets of the supervisor."""
    prices: Prices = Prices()
    """What things cost."""
    limits: Limits = Limits()
    """What a run may spend."""
    notify: Notify = Notify()
    """Who is told what happens to a run."""

    @model_validator(mode="before")
    @classmethod
    def _over_its_stage(cls, raw: Any) -> Any:
        """What a node does not say it takes from its stage."""
        asked = raw.get("resources") if isinstance(raw, dict) else None
        if not isinstance(asked, dict) or not all(isinstance(r, dict) for r in asked.values()):
            return raw
        of_stages = {name: asked.get(str(name).partition(".")[0], {}) for name in asked}
        return {**raw, "resources": {name: of_stages[name] | r for name, r in asked.items()}}

    @model_validator(mode="after")
    def _limits_can_be_reached(self) -> Self:
        prices, has_gpus = self.prices, any(r.gpus_per_node for r in self.resources.values())
        if self.limits.max_gpu_hours is not None and not has_gpus:
            raise ValueError(
                "limits.max_gpu_hours: no stage has gpus_per_node, so that it is never reached; "
                "give max_price with prices.cpu_hour"
            )
        has_price = (has_gpus and prices.gpu_hour) or prices.cpu_hour
        if self.limits.max_price is not None and not has_price:
            raise ValueError(
                "limits.max_price: nothing has a price, so that it is never reached; "
                "give prices.gpu_hour or prices.cpu_hour"
            )
        return self

    @model_validator(mode="after")
    def _fit_for_slurm(self) -> Self:
        if self.backend != "slurm":
            return self
        if self.launcher == "ray_train":
            raise ValueError("launcher: ray_train is not for Slurm; leave it out, or say submitit")
        if "://" in self.store and "file://" not in self.store:
            raise ValueError(not_shared(self.store))
        if "%" in self.store:
            raise ValueError(
                f"store: {self.store}: % in a log's path means a number to Slurm; name a folder "
                "without it"
            )
        shortest_min = min(self._walltimes_min())
        if self.retry.notice_s > 30 * shortest_min:
            raise ValueError(
                f"retry.notice_s: {self.retry.notice_s:g} s is more than half of the shortest job "
                f"({shortest_min} min); lower it, or raise walltime_min"
            )
        return self

    @model_validator(mode="after")
    def _fit_for_ray(self) -> Self:
        if self.backend not in ("ray", "slurm"):
            ranges = [n for n, r in self.resources.items() if isinstance(r.nodes, NodeRange)]
            if ranges:
                raise ValueError(
                    f"resources.{ranges[0]}.nodes: a range is for backends ray and slurm; give a "
                    "number"
                )
        if self.backend != "ray":
            return self
        if self.rank_launcher != "ray_train":
            raise ValueError(f"launcher: {self.launcher} is not for Ray; leave it out")
        environment = self.environment
        if environment.export:
            raise ValueError(
                f"environment.export: {environment.export[0]}: Ray would write its value down; "
                "set it where the cluster's nodes are started, and leave it out here"
            )
        if environment.container:
            raise ValueError(
                "environment.container: the cluster's own launcher chooses the image; leave it out"
            )
        return self

    def _walltimes_min(self) -> Iterator[int]:
        yield from (r.walltime_min for r in self.resources.values())
        yield Resources().walltime_min
        slurm = self.slurm
        options: tuple[SlurmOptions, ...] = (slurm, slurm.head, slurm.workers)
        yield from (o.walltime_min for o in (*options, *slurm.stages.values()) if o.walltime_min)

    @property
    def data_roots(self) -> dict[str, DataRoot]:
        """Source name to where it lies, written out."""
        given = self.data.items()
        return {n: r if isinstance(r, DataRoot) else DataRoot(root=r) for n, r in given}

    @property
    def nodes_come_and_go(self) -> bool:
        """Whether nodes come while a stage is at work, as it asks for them, and may be drained."""
        return self.backend == "ray"

    @property
    def pending_deadline_s(self) -> float:
        """How long workers may wait for nodes, in seconds; schedulers with a queue have no end."""
        return 60 * self.ray.pending_deadline_min if self.nodes_come_and_go else math.inf

    @property
    def ttl_s(self) -> float:
        """How long a supervisor may work, in seconds."""
        has_end = self.nodes_come_and_go and self.ray.ttl_h is not None
        return 3600 * (self.ray.ttl_h or 0) if has_end else math.inf

    def node_selector(self, use: Literal["data", "training"]) -> dict[str, str]:
        """Labels of the nodes that are for a use, as Ray selects by them; empty where all are."""
        types = self.ray.node_types if self.nodes_come_and_go else {}
        names = [name for name, t in types.items() if use in t.used_for]
        return of_types(names) if len(names) < len(types) else {}

    @property
    def on_demand_types(self) -> tuple[str, ...]:
        """Types for training that no cloud takes back, where it takes others; else none."""
        types = self.ray.node_types.items() if self.nodes_come_and_go else ()
        is_spot = {name: t.spot for name, t in types if "training" in t.used_for}
        kept = tuple(name for name, spot in is_spot.items() if not spot)
        return kept if len(kept) < len(is_spot) else ()

    @property
    def data_locations(self) -> tuple[str, ...]:
        """The roots of all sources."""
        return tuple(source.root for source in self.data_roots.values())

    @property
    def rank_launcher(self) -> Literal["ray_train", "submitit"]:
        """What starts the ranks of training."""
        return self.launcher or ("submitit" if self.backend == "slurm" else "ray_train")

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that must be set where a run is supervised, and who names them."""
        named = dict.fromkeys(self.environment.export, "environment.export")
        if self.notify.webhook:
            named[variable_in(self.notify.webhook)] = "notify.webhook"
        return named

    def resources_of(self, stage: str, node: str = "") -> Resources:
        """The resources of a stage or one node of it, defaults where the file is silent."""
        return self.resources.get(node) or self.resources.get(stage) or Resources()
