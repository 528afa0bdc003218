"""Which split each recording is in: whole groups of recordings, dealt out by their hashes.

A group is what the recipe's ``split.by`` never tears apart. Its place in [0, 1) is the first 8
bytes of sha256(group) / 2**64, so that it stays where it is when data is added. Where the shares of
places leave a split without any group, as with a few recordings, groups are dealt out by the rank
of their places instead, at least one to each split. A deal is found from the names of groups, piece
by piece, and needs no more of them than until every split has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import DataError
from orchestrator.spec.recipe import Split

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
GROUP_COLUMNS = ("source", "speaker", "session")
"""What tells the group of a recording, besides its id."""
_TRAIN, _VALID, _TEST, _NONE = 0, 1, 2, -1

Places = npt.NDArray[np.float64]
"""N x 2: where groups are among all, and where among those for training."""
Codes = npt.NDArray[np.int8]
"""Numbers of splits in ``SPLITS``; -1 for no split."""


def sources_of(rows: pa.Table, *, named: str = "recording") -> pa.ChunkedArray:
    """The source of each row; shards of earlier versions say it in the recording's id alone."""
    prefixes = pc.list_element(pc.split_pattern(rows[named], "/", max_splits=1), 0)
    return pc.coalesce(rows["source"], prefixes)


def groups_of(rows: pa.Table, by: str, *, named: str = "recording") -> pa.ChunkedArray:
    """The group of each row. Raises DataError for rows without a speaker, where they go by it.

    ``named``: the column with the recording's id.
    """
    if by == "recording":
        return rows[named]
    if by == "speaker":
        require_speakers(rows, named=named)
    names = pc.fill_null(rows[by], "")
    has_none = pc.equal(names, "")
    in_source = pc.binary_join_element_wise(sources_of(rows, named=named), names, "/")
    return pc.if_else(has_none, rows[named], in_source)


def require_speakers(rows: pa.Table, *, named: str) -> None:
    """Raise DataError when rows name no speaker; ``named``: the column with the recording's id."""
    has_none = pc.equal(pc.fill_null(rows["speaker"], ""), "")
    if num := pc.sum(has_none).as_py():
        first = rows[named].filter(has_none)[0].as_py()
        raise DataError(
            f"split.by: speaker: {num} of {rows.num_rows} recordings name no speaker, the first is "
            f"{first}; give split.by: session or recording, or a manifest that names all speakers"
        )


def place_of(name: str) -> float:
    """Where a name is in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Which places are in which split."""

    valid_end: float
    """Valid is what lies below."""
    test_end: float
    """Test is what lies between."""
    train_end: float = 1.0
    """Of the rest, only groups whose place among those for training is below."""
    by_rank: bool = False

    @classmethod
    def by_share(cls, shares: Split) -> Deal:
        """As a recipe says."""
        test_end = shares.valid + shares.test
        return cls(valid_end=shares.valid, test_end=test_end, train_end=shares.train_fraction)

    def codes(self, groups: pa.ChunkedArray) -> Codes:
        """The split of each group."""
        encoded = groups.combine_chunks().dictionary_encode()
        codes = self.codes_at(self.places(encoded.dictionary))
        of_rows: Codes = codes[encoded.indices.to_numpy()]
        return of_rows

    def places(self, groups: pa.Array) -> Places:
        """Where some groups are."""
        # Salted: the places of what is left for training begin where the other shares end.
        thins = self.train_end < 1
        found = (
            (place_of(name), place_of(f"train/{name}") if thins else 0.0)
            for name in groups.to_pylist()
        )
        return np.array(list(found), np.float64).reshape(-1, 2)

    def codes_at(self, places: Places) -> Codes:
        """The split at each place."""
        place_N, in_train_N = places.T
        ranges = (place_N < self.valid_end, place_N < self.test_end, in_train_N < self.train_end)
        return np.select(ranges, (_VALID, _TEST, _TRAIN), _NONE).astype(np.int8)


def deal_out(shares: Split, pieces: Iterable[pa.ChunkedArray]) -> Deal:
    """The deal of all groups, given in pieces and as often as one likes.

    By shares, unless they leave a split empty. Raises DataError for fewer groups than splits.
    """
    by_share, empty, passed = Deal.by_share(shares), set(range(len(SPLITS))), []
    for piece in pieces:
        places = by_share.places(pc.unique(piece))
        empty -= set(by_share.codes_at(places).tolist())
        if not empty:
            return by_share
        passed.append(places)
    places = np.unique(np.concatenate(passed or [np.empty((0, 2))]), axis=0)
    _require_one_each(len(places), shares)
    return _thinned(_filled(by_share, places, shares), places)


def _require_one_each(num_groups: int, shares: Split) -> None:
    if num_groups < len(SPLITS):
        finer = ", give split.by: recording" if shares.by != "recording" else ""
        raise DataError(
            f"split: train, valid and test need a {shares.by} each, and there are {num_groups} of "
            f"them{finer}, or add recordings"
        )


def _filled(by_share: Deal, places: Places, shares: Split) -> Deal:
    """A deal that gives each split a group, before training is thinned; places ascend."""
    whole = Deal(valid_end=by_share.valid_end, test_end=by_share.test_end)
    if {_TRAIN, _VALID, _TEST} <= set(whole.codes_at(places).tolist()):
        return by_share
    # Shares are below a half: however they are rounded up, one is left for training.
    num_valid, num_test = (max(1, int(s * len(places))) for s in (shares.valid, shares.test))
    return Deal(
        valid_end=float(places[num_valid, 0]),
        test_end=float(places[num_valid + num_test, 0]),
        train_end=by_share.train_end,
        by_rank=True,
    )


def _thinned(deal: Deal, places: Places) -> Deal:
    """The same, with at least one group left to train on."""
    in_train = np.sort(places[places[:, 0] >= deal.test_end, 1])
    if in_train[0] < deal.train_end:
        return deal
    num_trained = max(1, int(deal.train_end * len(in_train)))
    train_end = float(in_train[num_trained]) if num_trained < len(in_train) else 1.0
    return Deal(valid_end=deal.valid_end, test_end=deal.test_end, train_end=train_end, by_rank=True)


def used_groups(tables: Iterable[pa.Table], by: str) -> Iterator[pa.ChunkedArray]:
    """The groups of utterances that have units, table by table."""
    for table in tables:
        has_units = pc.greater(pc.list_value_length(table["units"]), 0)
        yield groups_of(table.filter(has_units), by)
