"""Waiting for a store that is full, read-only or away, and letting this machine's people know."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.errors import os_words
from orchestrator.ledger import last_words

PATIENCE_S = 900.0
PAUSE_S = 2.0
_WAITS = "waits"

log = logging.getLogger(__name__)


class StorePatience:
    """How long whoever supervises a run waits for its store, without a break.

    ``url``: of the supervisor's folder, about which this machine keeps what it waits for.
    """

    def __init__(
        self,
        url: str = "",
        *,
        for_s: float = PATIENCE_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._for_s, self._pause_s, self._clock = url, for_s, pause_s, clock
        self._since: float | None = None

    def is_over(self, error: OSError) -> bool:
        """Whether the store has refused for too long; else this takes a moment."""
        if self._since is None:
            self._since = self._clock()
            log.warning("the store is waited for: %s", os_words(error))
            last_words.leave(self._url, _WAITS, {"for": os_words(error)})
        if self._clock() - self._since >= self._for_s:
            last_words.forget(self._url, _WAITS)
            return True
        time.sleep(self._pause_s)
        return False

    def renew(self) -> None:
        """The store does as asked."""
        if self._since is not None:
            log.info("the store is back after %.0f s", self._clock() - self._since)
            last_words.forget(self._url, _WAITS)
        self._since = None


def waited_for(url: str) -> str:
    """What the supervisor with the folder ``url`` waits for, by this machine; empty for nothing."""
    words = last_words.find(url, _WAITS)
    return str(words["for"]) if words else ""
