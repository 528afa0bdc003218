"""What Ray Train does for ranks besides placing them: it lets those of a node see all its devices.

They connect among themselves. Ray's own way to do that for torch would import torch in the driver
and in every worker, though a standby forks the ranks that use it.
"""

from __future__ import annotations

from ray.train.backend import Backend, BackendConfig


class SharedDevices(Backend):
    """The devices of all ranks of a node, visible to each of them, for NCCL."""

    share_cuda_visible_devices = True


class SharedDevicesConfig(BackendConfig):
    """Names it to Ray Train."""

    @property
    def backend_cls(self) -> type[SharedDevices]:
        """What is done on each worker."""
        return SharedDevices
