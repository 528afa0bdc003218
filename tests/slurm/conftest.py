"""One Slurm cluster for all tests of this folder, put right after each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, missing, running
from tests.slurm.rig import SlurmSmoke
from tests.smoke import Smoke

REQUIRED = "ORCHESTRATOR_REQUIRE_SLURM"
"""Set where these tests must run: then their absence is a failure."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slurm")
            item.add_marker("slow")


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A cluster that is up."""
    if absent := missing():
        say = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        say(f"the Slurm tests did NOT run: {', '.join(absent)} missing; ./apt-packages.sh")
    with running() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _put_right(slurm: SlurmCluster) -> Iterator[None]:
    slurm.forget()
    yield
    slurm.repair()


@pytest.fixture(scope="session")
def undisturbed(
    slurm: SlurmCluster, material: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SlurmSmoke, str]:
    """A run to which nothing happened, and its name: what disturbed ones are compared with."""
    smoke = SlurmSmoke.on(slurm, tmp_path_factory.mktemp("undisturbed") / "run", material)
    name = smoke.submit()
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    return smoke, name


@pytest.fixture
def smoke(
    slurm: SlurmCluster, undisturbed: tuple[SlurmSmoke, str], material: Path, tmp_path: Path
) -> SlurmSmoke:
    """A store in which only training and what comes after it are left to do."""
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material)
    smoke.take_artifacts(undisturbed[0], "train", "perplexity", "continuations")
    return smoke


@pytest.fixture
def same_bytes(undisturbed: tuple[Smoke, str], smoke: Smoke) -> Iterator[None]:
    """After the test, everything is as if nothing had happened."""
    yield
    assert smoke.fingerprint() == undisturbed[0].fingerprint()
