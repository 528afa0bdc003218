from __future__ import annotations

import numpy as np
import pytest

from jobs.audio.alignments import Phone
from jobs.scoring.unit_quality import labels_at, quality
from jobs.speech.grid import Grid
from orchestrator.errors import DataError

PHONES = ["a", "a", "a", "b", "b", "b"]


def test_units_that_name_the_phones_score_one() -> None:
    assert quality(PHONES, np.array([7, 7, 7, 2, 2, 2])) == pytest.approx((1, 1, 1))


def test_units_that_say_nothing_score_no_information() -> None:
    assert quality(PHONES, np.zeros(6, np.int64)) == pytest.approx((0, 0.5, 1))


def test_scores_against_a_joint_table_by_hand() -> None:
    found = quality(["a", "a", "a", "b"], np.array([0, 0, 1, 1]))
    entropy_phone = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    information = entropy_phone + np.log(2) - (0.5 * np.log(2) + 0.5 * np.log(4))
    assert found.pnmi == pytest.approx(information / entropy_phone)
    assert found.phone_purity == pytest.approx(0.75)
    assert found.cluster_purity == pytest.approx(0.75)


def test_pauses_are_not_counted() -> None:
    units_T = np.array([7, 7, 7, 2, 2, 2])
    padded = quality(["", *PHONES, "", ""], np.concatenate([[9], units_T, [7, 2]]))
    assert padded == quality(PHONES, units_T)


@pytest.mark.parametrize("labels", [["a"] * 4, [""] * 4])
def test_a_single_phone_has_no_information_to_keep(labels: list[str]) -> None:
    with pytest.raises(DataError, match="two phones at least"):
        quality(labels, np.arange(4))


def test_frames_take_the_phone_at_their_centre() -> None:
    phones = [Phone(0.0, 0.5, "a"), Phone(0.5, 0.75, "b"), Phone(0.9, 1.0, "c")]
    # Centres: 0.2, 0.4, 0.6, 0.8 s; from 0.75 to 0.9 s nothing is known.
    assert labels_at(phones, Grid(hop=3200, field=6400), 4) == ["a", "a", "b", ""]
    assert labels_at(phones, Grid(3200, 6400), 3, start_sample=8000) == ["b", "c", ""]
