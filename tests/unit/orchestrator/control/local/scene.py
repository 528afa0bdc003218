"""A run that the local backend is to execute."""

from __future__ import annotations

from pathlib import Path

from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


class Scene:
    """A run on this machine, without the code that its supervisor would need."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.store = Store.open(str(folder / "store"))
        self.run = RunFolder(self.store.run_storage("small"))
        where = cluster(self.store.storage.url, **{"backend": "local", **settings})
        asked = recipe(**{"evaluate.continuations": None})
        self.run.create(plan_of(asked), asked, where, {}, {})

    def publish_all(self) -> None:
        for i in self.run.plan().instances:
            self.store.artifact(i.stage, i.key).publish(inputs=i.inputs, facts={}, producer={})
