"""A store and a finished run of the version before: ``tests/data/store-before.tar.gz``.

Two variants on a published encoder; checkpoints, logs and the run's code were left out.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store

ARCHIVE = Path(__file__).parents[2] / "data" / "store-before.tar.gz"
RUN = "smoke-published-d311b888"


def unpack(folder: Path) -> tuple[Store, RunFolder]:
    """The store and its run, below a folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    store = Store.open(str(folder))
    return store, RunFolder(store.run_storage(RUN))
