"""Where training curves go besides the ledger: TensorBoard events, one folder a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class Tracker:
    """TensorBoard scalars of a training, continued after a step; nothing without a folder."""

    def __init__(self, folder: str | None, *, after_step: int) -> None:
        self._writer = None
        if folder:
            # tensorboardX rather than torch's writer: it imports no TensorFlow and starts in 0.2 s.
            from tensorboardX import SummaryWriter

            # What an earlier attempt wrote beyond the step is done again: TensorBoard hides it.
            self._writer = SummaryWriter(logdir=folder, purge_step=after_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def scalars(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Record ``prefix/name`` for each value."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
