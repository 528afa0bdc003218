"""What Ray Train is told to do for ranks."""

from __future__ import annotations

from ray.train.torch import TorchConfig

from jobs.training.ray_backend import SharedDevicesConfig


def test_ranks_of_a_node_see_all_of_its_devices_as_with_rays_own() -> None:
    shared = "share_cuda_visible_devices"
    assert getattr(SharedDevicesConfig().backend_cls, shared)
    assert getattr(TorchConfig().backend_cls, shared)
