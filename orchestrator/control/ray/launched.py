"""A Ray cluster that is started and ended from here, by its launcher file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.control.executor import ClusterState, NodeCount
from orchestrator.control.ray.head import reached
from orchestrator.control.ray.launcher import carry_out, launcher_of, require_mounts
from orchestrator.control.ray.nodes import nodes_of
from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Cluster


class LaunchedRay:
    """What `orchestrator cluster` does to a Ray cluster."""

    def __init__(self, cluster: Cluster, where: str) -> None:
        """``where``: the cluster file's name. Raises RequestError for one that has no launcher."""
        self._cluster, self._where = cluster, where
        self._launcher = launcher_of(cluster.ray)
        self.up_ends_runs = self._launcher.up_restarts_ray

    def price(self) -> str:
        """What it costs an hour, with as few nodes as there may be and with all."""
        types, currency = self._cluster.ray.node_types, self._cluster.prices.currency
        known = {n: (t, t.price_hour) for n, t in types.items() if t.price_hour is not None}
        if not known:
            return "what it costs is not known; give ray.node_types.NAME.price_hour"
        least = sum(price * t.min_nodes for t, price in known.values())
        most = sum(price * t.max_nodes for t, price in known.values())
        all_nodes = ", ".join(f"{t.max_nodes} {n}" for n, (t, _) in known.items())
        words = f"{least:,.2f} {currency} an hour without work, at most {most:,.2f} ({all_nodes})"
        unknown = [name for name in types if name not in known]
        return f"{words}; no price is known of {', '.join(unknown)}" if unknown else words

    def up(self, say: Callable[[str], None]) -> None:
        """Start it, or change it into what its file says. Raises RequestError, BackendError."""
        if problem := next(self._misfits(), ""):
            raise RequestError(problem)
        require_mounts(self._launcher)
        for argv in self._launcher.up:
            carry_out(argv, self._launcher.path.parent, say)

    def down(self, say: Callable[[str], None]) -> None:
        """End all of its nodes. Raises RequestError, BackendError."""
        carry_out(self._launcher.down, self._launcher.path.parent, say)

    def runs(self) -> tuple[str, ...]:
        """The runs whose supervisors are jobs of its head. Raises BackendError."""
        with reached(self._cluster) as jobs:
            running = jobs.running().items()
        return tuple(dict.fromkeys(run for tag, run in running if tag.startswith(f"{run}-s")))

    def state(self) -> ClusterState:
        """How it stands. Raises BackendError where its head does not answer."""
        with reached(self._cluster) as jobs:
            head = f"{jobs.url} answers, Ray {jobs.version()}"
            found = {count.type: count for count in nodes_of(jobs, self._cluster).counts}
        absent = (n for n in self._cluster.ray.node_types if n not in found)
        return ClusterState(
            head=head, nodes=(*found.values(), *(NodeCount(type=name) for name in absent))
        )

    def _misfits(self) -> Iterator[str]:
        """What the cluster file says of nodes that the launcher file does not know."""
        known = self._launcher.node_types
        for name in self._cluster.ray.node_types:
            if name not in known:
                yield (
                    f"{self._where}: ray.node_types.{name}: {self._launcher.path.name} has no such "
                    f"type; it has {', '.join(known)}"
                )
