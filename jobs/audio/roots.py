"""Whether a source's root is the one that was listed: a lost mount looks like missing files."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import BackendError, os_words


class RootWatch:
    """Remembers a root's file system, and a file that was read there."""

    def __init__(self, name: str, root: Path) -> None:
        """``name``: of the source. Raises BackendError when the root is not there."""
        self._name, self._root = name, root
        self._device = self._device_now()
        self._witness: Path | None = None

    def has_read(self, path: Path) -> None:
        """Say that a file below the root could be read."""
        self._witness = path

    def require(self) -> None:
        """Raises BackendError unless the root is as it was, and what was read there still opens."""
        if self._device_now() != self._device:
            raise self._lost(f"{self._root}: another file system than at the start")
        if self._witness:
            try:
                self._witness.open("rb").close()
            except OSError as error:
                raise self._lost(os_words(error)) from None

    def _device_now(self) -> int:
        try:
            return self._root.stat().st_dev
        except OSError as error:
            raise self._lost(os_words(error)) from None

    def _lost(self, words: str) -> BackendError:
        return BackendError(f"data.{self._name}: {words}; see whether it is mounted")
