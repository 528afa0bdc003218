"""What became of a corpus' recordings: used, left out or unreadable, each exactly once.

In: the tables of unit shards. A recording may be shared out to several shards, of which it is the
first or the last recording; it is one all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import pyarrow as pa

from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ

_COLUMNS = ("recording", "source", "num_samples", "left_out", "unreadable")
_AT_LEAST = 5
"""Unreadable recordings that stop no run, however few there are in all."""
_NAMED = 10


class Fate(IntEnum):
    """What became of a recording; of its parts, the greatest counts."""

    LEFT_OUT = 0
    USED = 1
    UNREADABLE = 2


class Outcome(NamedTuple):
    """A recording, as far as one shard shows it, or all of it."""

    id: str
    source: str
    fate: Fate
    reason: str
    """Why it, or a part of it, is not used."""
    used_samples: int
    left_out_samples: int
    """At 16 kHz, as far as it was decoded."""

    def joined(self, other: Outcome) -> Outcome:
        """Both parts of a recording together."""
        return self._replace(
            fate=max(self.fate, other.fate),
            reason=_joined((self.reason, other.reason)),
            used_samples=self.used_samples + other.used_samples,
            left_out_samples=self.left_out_samples + other.left_out_samples,
        )


@dataclass(frozen=True)
class Account:
    """The recordings of one shard: those used by number, the others by name."""

    edges: tuple[Outcome, ...]
    """The first and the last, parts of which may be in other shards."""
    others: tuple[Outcome, ...]
    """Those between them that are not used."""
    num_used: Counter[str]
    """How many between them are, by source."""
    used_samples: Counter[str]
    left_out_samples: Counter[str]
    """Of those that are used."""

    @classmethod
    def of(cls, shard: pa.Table) -> Account:
        """Counted from the rows of a shard."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in shard.select(_COLUMNS).to_pylist():
            rows.setdefault(row["recording"], []).append(row)
        found = [_outcome(name, own) for name, own in rows.items()]
        between = found[1:-1]
        used = [outcome for outcome in between if outcome.fate is Fate.USED]
        return cls(
            edges=(*found[:1], *found[1:][-1:]),
            others=tuple(outcome for outcome in between if outcome.fate is not Fate.USED),
            num_used=Counter(outcome.source for outcome in used),
            used_samples=_by_source(used, "used_samples"),
            left_out_samples=_by_source(used, "left_out_samples"),
        )


def _outcome(name: str, rows: list[dict[str, Any]]) -> Outcome:
    reasons = [row["unreadable"] or row["left_out"] or "" for row in rows]
    fate = Fate.USED if "" in reasons else Fate.LEFT_OUT
    if any(row["unreadable"] for row in rows):
        fate = Fate.UNREADABLE
    sizes = [row["num_samples"] for row in rows]
    used = sum(size for size, reason in zip(sizes, reasons, strict=True) if not reason)
    return Outcome(name, rows[0]["source"], fate, _joined(reasons), used, sum(sizes) - used)


def _joined(reasons: Iterable[str]) -> str:
    """Each once, in one order: shards are completed in any."""
    return "; ".join(sorted({one for reason in reasons for one in reason.split("; ") if one}))


def _by_source(outcomes: Iterable[Outcome], what: str) -> Counter[str]:
    sums: Counter[str] = Counter()
    for outcome in outcomes:
        sums[outcome.source] += getattr(outcome, what)
    return sums


@dataclass
class Books:
    """The accounts of all shards together, in any order."""

    num_used: Counter[str] = field(default_factory=Counter)
    used_samples: Counter[str] = field(default_factory=Counter)
    left_out_samples: Counter[str] = field(default_factory=Counter)
    _edges: dict[str, Outcome] = field(default_factory=dict)
    """Recordings of which a shard that is not booked yet may have a part."""
    _borders: dict[int, str] = field(default_factory=dict)
    """Which of them is at the beginning of a shard, seen from one side alone."""
    _num_borders: Counter[str] = field(default_factory=Counter)
    """At how many such borders each of them is."""
    _others: list[Outcome] = field(default_factory=list)
    _unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, shard: int, account: Account) -> None:
        """Take in the shard of this number; each must be taken in once."""
        self.num_used += account.num_used
        self.used_samples += account.used_samples
        self.left_out_samples += account.left_out_samples
        self._others += account.others
        for edge in account.edges:
            before = self._edges.get(edge.id)
            self._edges[edge.id] = before.joined(edge) if before else edge
        for outcome in (*account.others, *account.edges):
            if outcome.fate is Fate.UNREADABLE:
                self._unreadable[outcome.id] = outcome.reason
        if account.edges:
            self._settle(shard, account.edges[0].id, account.edges[-1].id)

    def _settle(self, shard: int, first: str, last: str) -> None:
        """Count the recordings at a shard's edges of which all parts are there."""
        self._num_borders.update((first, last))
        met = [first, last]
        for border, name in ((shard, first), (shard + 1, last)):
            if (beyond := self._borders.pop(border, None)) is None:
                self._borders[border] = name
            else:
                self._num_borders.subtract((name, beyond))
                met.append(beyond)
        for name in {name for name in met if not self._num_borders[name]}:
            del self._num_borders[name]
            self._count(self._edges.pop(name))

    def _count(self, outcome: Outcome) -> None:
        if outcome.fate is not Fate.USED:
            self._others.append(outcome)
            return
        self.num_used[outcome.source] += 1
        self.used_samples[outcome.source] += outcome.used_samples
        self.left_out_samples[outcome.source] += outcome.left_out_samples

    def of_fate(self, fate: Fate) -> list[Outcome]:
        """The recordings of a fate, by id; of those that are used, some."""
        found = [o for o in (*self._others, *self._edges.values()) if o.fate is fate]
        return sorted(found)

    def facts(self) -> dict[str, Any]:
        """How many recordings and hours are used, left out and unreadable, by source and in all."""
        used, left_out, unreadable = (
            self.of_fate(fate) for fate in (Fate.USED, Fate.LEFT_OUT, Fate.UNREADABLE)
        )
        numbers = {
            "num_recordings": self.num_used + Counter(o.source for o in used),
            "num_left_out": Counter(o.source for o in left_out),
            "num_quarantined": Counter(o.source for o in unreadable),
        }
        samples = {
            "used_hours": self.used_samples + _by_source(used, "used_samples"),
            "left_out_hours": self.left_out_samples
            + _by_source([*used, *left_out], "left_out_samples"),
        }
        sources = sorted(set().union(*numbers.values(), *samples.values()))

        def about(of: Sequence[str]) -> dict[str, Any]:
            # Whole numbers are summed: those of hours would depend on the order of shards.
            counts = {name: sum(counted[s] for s in of) for name, counted in numbers.items()}
            heard = {name: sum(counted[s] for s in of) for name, counted in samples.items()}
            return counts | {name: n / SAMPLE_RATE_HZ / 3600 for name, n in heard.items()}

        return {**about(sources), "sources": {source: about([source]) for source in sources}}

    def require_readable(self, num_listed: int, most_percent: float) -> None:
        """Raise DataError when more recordings are unreadable than the recipe allows."""
        require_readable(self._unreadable, num_listed, most_percent)


def require_readable(unreadable: Mapping[str, str], num_listed: int, most_percent: float) -> None:
    """Raise DataError when too many of all that are listed cannot be read; the first are named.

    ``unreadable``: why, by id.
    """
    if len(unreadable) <= max(_AT_LEAST, num_listed * most_percent / 100):
        return
    names = "; ".join(f"{name}: {reason}" for name, reason in sorted(unreadable.items())[:_NAMED])
    raise DataError(
        f"corpus.max_quarantine_percent: {len(unreadable)} of {num_listed} recordings cannot be "
        f"read, more than {most_percent:g} %: {names}; repair them, or raise it"
    )
