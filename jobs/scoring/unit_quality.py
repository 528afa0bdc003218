"""How much units tell of phones: the measures of HuBERT (arXiv 2106.07447, section IV-C).

In: for each frame its unit and the phone at its centre. Out: PNMI, the mutual information of phone
and unit as a share of the phones' entropy, and both purities. Pauses are not counted: any features
tell silence from speech.

Shapes: T frames, P phones, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.audio.alignments import Phone
from jobs.speech.grid import Grid
from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ

Integers = npt.NDArray[np.integer]


class Quality(NamedTuple):
    """How units and phones go together, each in [0, 1]."""

    pnmi: float
    """Mutual information of phone and unit, as a share of the phones' entropy."""
    phone_purity: float
    """Share of frames that have the commonest phone of their unit."""
    cluster_purity: float
    """Share of frames that have the commonest unit of their phone."""


def quality(labels_T: Sequence[str], units_T: Integers) -> Quality:
    """PNMI and both purities of the frames that are no pause.

    Raises DataError without frames, or with a single phone.
    """
    is_phone_T = np.array([bool(label) for label in labels_T])
    names, phones_T = np.unique(np.array(labels_T)[is_phone_T], return_inverse=True)
    if len(names) < 2:
        raise DataError(
            "unit quality: needs frames of two phones at least, and found those of "
            f"{', '.join(names) or 'none'}; check that the phone times are those of the recordings"
        )
    units_T = units_T[is_phone_T]
    joint_PK = np.zeros((len(names), int(units_T.max()) + 1))
    np.add.at(joint_PK, (phones_T, units_T), 1)
    joint_PK /= joint_PK.sum()
    phone_P, unit_K = joint_PK.sum(1), joint_PK.sum(0)
    information = _entropy(phone_P) + _entropy(unit_K) - _entropy(joint_PK.ravel())
    return Quality(
        pnmi=float(information / _entropy(phone_P)),
        phone_purity=float(joint_PK.max(0).sum()),
        cluster_purity=float(joint_PK.max(1).sum()),
    )


def labels_at(
    phones: Sequence[Phone], grid: Grid, num_frames: int, *, start_sample: int = 0
) -> list[str]:
    """The phone at the centre of every frame; empty in pauses and where none is known.

    ``start_sample``: of the frames' wave in the recording whose phones they are, at 16 kHz.
    """
    centres_s = (start_sample + np.arange(num_frames) * grid.hop + grid.field / 2) / SAMPLE_RATE_HZ
    places = np.searchsorted([phone.end_s for phone in phones], centres_s, side="right")
    return [
        phones[place].label if place < len(phones) and phones[place].start_s <= centre_s else ""
        for place, centre_s in zip(places, centres_s, strict=True)
    ]


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    """Entropy in nats; cells of probability 0 add nothing."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
