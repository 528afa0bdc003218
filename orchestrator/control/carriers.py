"""Which carrier a cluster's backend has, and how runs stand with theirs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.control.carrier import Carrier, Observed
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.spec.cluster import Cluster


def carrier_of(cluster: Cluster) -> Carrier:
    """The one for this cluster's backend."""
    if cluster.backend == "slurm":
        from orchestrator.control.on_slurm import SlurmCarrier

        return SlurmCarrier()
    from orchestrator.control.on_local import LocalCarrier

    return LocalCarrier()


def require_carrier(cluster: Cluster) -> None:
    """Raises RequestError when nothing here can carry a run on this backend."""
    if cluster.backend not in ("local", "slurm"):
        raise RequestError(
            f"cluster: backend: {cluster.backend!r} can be planned for but not submitted to; "
            "use local or slurm"
        )


def observe(run: RunFolder) -> Observed:
    """How one run stands."""
    return carrier_of(run.cluster()).observe([run])[run.name]


def observe_all(runs: Sequence[RunFolder]) -> dict[str, Observed]:
    """How many runs stand, each scheduler asked once about all of its own."""
    by_backend: dict[str, list[RunFolder]] = {}
    for run in runs:
        by_backend.setdefault(run.cluster().backend, []).append(run)
    found: dict[str, Observed] = {}
    for group in by_backend.values():
        found |= carrier_of(group[0].cluster()).observe(group)
    return found
