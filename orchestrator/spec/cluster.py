"""The cluster: where stages run, where data and the store lie, what may be spent.

Changes no result.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec.model import Count, Name, NonNegativeFloat, PositiveFloat, PositiveInt, Spec

StageName = Literal["corpus", "encoder", "codebook", "tokenize", "pack", "train", "evaluate"]


class Resources(Spec):
    """What one stage asks of the scheduler."""

    nodes: PositiveInt = 1
    """Nodes of a training job."""
    gpus_per_node: Count = 0
    """Accelerators on each node; 0 computes on CPUs."""
    ranks_per_node: PositiveInt = 1
    """Training ranks on each node where there are no accelerators."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores of one worker or rank; also its intra-op threads."""
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
    def world_size(self) -> int:
        """Training ranks over all nodes."""
        return self.nodes * (self.gpus_per_node or self.ranks_per_node)


class Retry(Spec):
    """Budgets of the supervisor, the only one that retries."""

    max_attempts: PositiveInt = 20
    """Attempts of one stage, whatever ended them."""
    max_without_progress: PositiveInt = 2
    """Attempts in a row that may end the same way without progress."""
    heartbeat_timeout_s: PositiveFloat = 60.0
    """A lease whose heartbeat is older than this is dead; its key may be taken over."""
    hang_timeout_s: PositiveFloat = 900.0
    """A rank that does nothing for this long, in seconds, hangs: its attempt is ended and tried
    again. Longer than the longest forward and backward pass."""
    start_timeout_s: PositiveFloat = 3600.0
    """The same before the first step, while models load and compile, in seconds."""
    notice_s: PositiveFloat = 90.0
    """Seconds between a preemption notice and the end: what is saved must be published by then."""
    mtbf_h: PositiveFloat | None = None
    """Mean time between failures of the whole training job, in hours; observed when absent."""


class Environment(Spec):
    """What surrounds the processes that jobs start."""

    setup: tuple[str, ...] = ()
    """Shell lines run before each job, such as ``module load cuda``."""
    venv: str | None = None
    """Python environment on the nodes; the submitting one when absent."""
    container: str | None = None
    """Container image that jobs run in, on backends that have containers."""


class Prices(Spec):
    """What things cost, for estimates."""

    gpu_hour: NonNegativeFloat = 0.0
    """Price of one accelerator for one hour."""
    currency: str = "USD"
    """Currency of the prices."""


class Cluster(Spec):
    """Where a recipe runs. All but ``backend`` and ``store`` have defaults."""

    backend: Literal["local", "slurm", "ray", "fake"]
    """What starts processes."""
    store: Annotated[str, Field(min_length=1)]
    """URL of the store: a path (relative to this file), ``s3://`` or ``gs://``."""
    data: dict[Name, str] = Field(default_factory=dict)
    """Source name to its root here (a path, relative to this file)."""
    models: dict[str, str] = Field(default_factory=dict)
    """Model name to a local folder in Hugging Face format (relative to this file), for clusters
    without a hub."""
    resources: dict[StageName, Resources] = Field(default_factory=dict)
    """What each stage asks for; a stage not named here gets the defaults."""
    scratch: str | None = None
    """Node-local folder for checkpoints on their way to the store; the system's temporary folder
    when absent."""
    launcher: Literal["ray_train", "submitit"] = "ray_train"
    """What starts the ranks of training."""
    cpus: PositiveInt | None = None
    """CPU cores the local backend may use at a time; all of this machine's when absent."""
    environment: Environment = Environment()
    """What surrounds the jobs' processes."""
    retry: Retry = Retry()
    """Budgets of the supervisor."""
    prices: Prices = Prices()
    """What things cost."""

    def resources_of(self, stage: str) -> Resources:
        """The resources of a stage, defaults where the file is silent."""
        return next((r for name, r in self.resources.items() if name == stage), Resources())
