"""Where training curves go besides the ledger: TensorBoard events in the attempt's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self


class Tracker:
    """TensorBoard scalars of one attempt; does nothing when switched off."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._writer = None
        if enabled:
            # tensorboardX rather than torch's writer: it imports no TensorFlow and starts in 0.2 s.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(logdir=str(folder / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer:
            self._writer.close()

    def scalars(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Record ``prefix/name`` for each value."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
