"""The elastic Ray cluster of a data stage, from its head."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from orchestrator.backends.ray_session import RayHead
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.ray_cluster import (
    MAX_IN_VAIN,
    RayCluster,
    dismiss_workers,
    head_path,
    publish_head,
    published_head,
)
from orchestrator.errors import RequestError
from orchestrator.ledger.storage import Storage
from tests.unit.orchestrator.control.slurm.scene import STAGES, Scene


class Session:
    """Stands for a Ray head that is up."""

    head = RayHead(address="n1:6379", token="t")

    def __init__(self, **_: object) -> None:
        pass

    def is_alive(self) -> bool:
        return True


def test_without_a_head_nobody_asks_for_workers(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    tokenize, arrays = scene.id("tokenize"), len(scene.asked("sbatch"))
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    ray = RayCluster(
        scene.store, scene.run, tokenize, here, look_every_s=0.0, start_session=Session
    )
    ray.look()
    assert len(scene.asked("sbatch")) == arrays
    ray.start_head()
    assert published_head(scene.run.stage(tokenize)) == Session.head
    for _ in range(10):
        ray.look()
    assert len(scene.asked("sbatch")) == arrays + 1 + MAX_IN_VAIN, "in vain, that is enough"
    ray.withdraw()
    assert published_head(scene.run.stage(tokenize)) is None


def test_workers_leave_nodes_on_which_they_die_alone(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    tokenize = scene.id("tokenize")
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    ray = RayCluster(
        scene.store, scene.run, tokenize, here, look_every_s=0.0, start_session=Session
    )
    ray.start_head()
    workers = scene.jobs("workers", tokenize)[0].id
    scene.run.begin_attempt(tokenize).note_failing_node("n7")
    for _ in range(2):
        ray.look()
    update = f"scontrol update JobId={workers} ExcNodeList=n7"
    assert [line for line in scene.asked("scontrol") if "update" in line] == [update]
    assert scene.asked("scancel") == [f"scancel --nodelist=n7 {workers}"]
    scripts = scene.run.storage.local_root.glob(f"submissions/0001/{tokenize}-workers-2/script.sh")
    assert all("#SBATCH --exclude=n7\n" in path.read_text() for path in scripts)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_workers_are_dismissed_though_the_store_takes_no_word_about_it(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    tokenize = scene.id("tokenize")
    root = scene.run.storage.local_root
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
        dismiss_workers(scene.run, tokenize)
    finally:
        subprocess.run(["umount", root], check=True)
    assert scene.asked("scancel") == [f"scancel {scene.jobs('workers', tokenize)[0].id}"]


def test_a_heads_token_is_for_its_owners_eyes(tmp_path: Path) -> None:
    stage = Storage(str(tmp_path / "stage"))
    assert published_head(stage) is None
    for address in ("10.0.0.1:6379", "10.0.0.2:6379"):
        said = RayHead(address=address, token="secret")
        publish_head(stage, said)
        assert published_head(stage) == said
    (path,) = (tmp_path / "stage").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head_path(stage).unlink()
    assert published_head(stage) is None


def test_an_object_store_keeps_no_tokens() -> None:
    with pytest.raises(RequestError, match="a store that is a path"):
        publish_head(Storage("memory://x"), RayHead(address="a", token="b"))
