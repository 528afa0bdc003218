"""The elastic Ray cluster of a data stage, from its head."""

from __future__ import annotations

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.ray_cluster import MAX_IN_VAIN, RayCluster
from orchestrator.ledger import ray_head
from orchestrator.ledger.ray_head import RayHead
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
    assert ray_head.read(scene.run.stage(tokenize)) == Session.head
    for _ in range(10):
        ray.look()
    assert len(scene.asked("sbatch")) == arrays + 1 + MAX_IN_VAIN, "in vain, that is enough"
    ray.withdraw()
    assert ray_head.read(scene.run.stage(tokenize)) is None
