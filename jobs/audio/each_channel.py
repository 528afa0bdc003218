"""Makes a recording of each channel, where a source's recipe says so.

In: rows of `listing.LISTED_SCHEMA` and what their headers say. Out: the same, where a file with
several channels has a row for each, ``a/b#0`` and ``a/b#1`` for ``a/b``, of one session: those who
talk to each other are in one split. What a corpus takes one channel of already stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.audio.headers import Headers
from orchestrator.errors import DataError

_ENDS_WITH_CHANNEL = r"#[0-9]+$"


def split(
    wanted: pa.Table, headers: Headers, sources: Collection[str]
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Rows and their samples, with a row for each channel in the sources named.

    Raises DataError when a row would have the id of another.
    """
    is_asked = pc.is_in(wanted["source"], pa.array(sources, pa.string()))
    is_open = pc.and_(is_asked, pc.is_null(wanted["channel"])).to_numpy()
    times = np.where(is_open, headers.num_channels, 1)
    if (times == 1).all():
        return wanted, headers.num_samples
    of = np.repeat(np.arange(len(times)), times)
    number = np.arange(len(of)) - np.repeat(np.cumsum(times) - times, times)
    rows = _named(wanted.take(of), pa.array(number, pa.int64()), pa.array(times[of] > 1))
    # Sources stay in their order; within one, "a#0" need not come before "a b".
    source = pc.index_in(rows["source"], pc.unique(rows["source"]))
    order = pc.sort_indices(
        pa.table([source, rows["id"]], names=["source", "id"]),
        [("source", "ascending"), ("id", "ascending")],
    )
    rows = rows.take(order)
    _require_different(rows["id"])
    return rows, headers.num_samples[of][order.to_numpy()]


def file_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids that recordings had before channels were told apart, where they were."""
    return pc.replace_substring_regex(ids, _ENDS_WITH_CHANNEL, "")


def _named(rows: pa.Table, channel: pa.Array, is_one_of_several: pa.Array) -> pa.Table:
    """With the id, the session and the channel of what a row has become."""
    ids, sessions = rows["id"], rows["session"]
    own = pc.binary_join_element_wise(ids, channel.cast(pa.string()), "#")
    common = pc.if_else(pc.equal(sessions, ""), ids, sessions)
    columns = {
        "id": pc.if_else(is_one_of_several, own, ids),
        "session": pc.if_else(is_one_of_several, common, sessions),
        "channel": pc.if_else(is_one_of_several, channel, rows["channel"]),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows


def _require_different(ids: pa.ChunkedArray) -> None:
    """Ids in order, source by source. Raises DataError."""
    same = pc.equal(ids[1:], ids[:-1]) if len(ids) > 1 else pa.array([], pa.bool_())
    if (first := pc.index(same, True).as_py()) >= 0:
        raise DataError(
            f"data: {ids[first].as_py()} is a channel of one file and the name of another; "
            "rename the file, or give its source one of the other channels"
        )
