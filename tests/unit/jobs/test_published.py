"""When a published codebook is one of the stated layer, and what is said when it is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.published import fetched, num_alike, require_fit, require_shape
from jobs.speech.codebook_files import PublishedCodebook
from jobs.speech.judged import Spread
from jobs.speech.lloyd import BlocksInMemory, Fit, fit, nearest
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.transformer import View
from jobs.speech.views import spread_of
from orchestrator.errors import CorruptError, DataError, RequestError
from orchestrator.spec.recipe import Codebook
from tests.encoders import small_encoder, speechlike
from tests.unit.jobs.test_attempt import attempt_in

STATED = View(2)


def fresh(inertia: float) -> Fit:
    """Of 100 frames."""
    return Fit(centroids=torch.zeros(2, 1), inertia=inertia, iterations=3, num_frames=100)


def spread(inertia: float) -> Spread:
    """Of 100 frames with a variance of 1."""
    return Spread(100, np.zeros(1), 100.0, inertia)


@pytest.mark.parametrize("name", ["hubert base", "hubert large", "wavlm large"])
def test_a_codebook_fits_its_own_view_alone(name: str) -> None:
    encoder, waves = SpeechEncoder(small_encoder(name), 3), speechlike(2.0, 3.1)
    (features,) = encoder.views(waves, lambda feats_ND: feats_ND)
    for stated, feats_ND in features.items():
        fitted = fit(BlocksInMemory([feats_ND]), 10, seed=0)
        spreads = {view: spread_of(feats, fitted.centroids) for view, feats in features.items()}
        require_fit(spreads, stated, fitted)
        for other in spreads.keys() - {stated}:
            with pytest.raises(RequestError) as error:
                require_fit(spreads, other, fitted)
            assert f"set encoder.layer: {stated.layer} and encoder.output: {stated.output}" in str(
                error.value
            )


def test_a_better_view_is_named_with_the_figures() -> None:
    spreads = {
        View(1): spread(70.0),
        View(1, "before_residual"): spread(95.0),
        STATED: spread(50.0),
        View(2, "before_residual"): spread(120.0),
        View(3): spread(60.0),
        View(4): spread(30.0),
    }
    with pytest.raises(RequestError) as error:
        require_fit(spreads, STATED, fresh(45.0))
    assert str(error.value) == (
        "tokenizer.codebook: its inertia is least for another view than the stated layer 2 "
        "after_residual (layer 2 after_residual 0.5, 0.500 of variance, layer 4 after_residual "
        "0.3, 0.300 of variance, layer 1 after_residual 0.7, 0.700 of variance, layer 2 "
        "before_residual 1.2, 1.200 of variance, layer 3 after_residual 0.6, 0.600 of variance; a "
        "fresh fit of after_residual 0.45); set encoder.layer: 4 and encoder.output: "
        "after_residual, or name the codebook of the layer that you mean"
    )


def test_layers_that_are_alike_decide_nothing() -> None:
    require_fit({STATED: spread(50.0), View(3): spread(49.5)}, STATED, fresh(45.0))
    with pytest.raises(RequestError, match="layer: 3"):
        require_fit({STATED: spread(50.0), View(3): spread(48.5)}, STATED, fresh(45.0))


@pytest.mark.parametrize(("inertia", "fits"), [(30.0, True), (40.0, True), (26.6, False)])
def test_a_fresh_fit_must_not_be_much_better(inertia: float, fits: bool) -> None:
    spreads = {STATED: spread(40.0), View(1): spread(80.0)}
    if fits:
        require_fit(spreads, STATED, fresh(inertia))
    else:
        with pytest.raises(RequestError, match=r"is 1\.50 times that of a fresh fit, above 1\.5"):
            require_fit(spreads, STATED, fresh(inertia))


def test_frames_without_numbers_count_nothing() -> None:
    feats_ND, centroids_KD = torch.randn(5, 2), torch.randn(3, 2)
    holes_ND = torch.cat([feats_ND, torch.tensor([[torch.nan, 0.0], [0.0, torch.inf]])])
    found, expected = spread_of(holes_ND, centroids_KD), spread_of(feats_ND, centroids_KD)
    assert (found.num_frames, found.inertia) == (5, expected.inertia)
    with pytest.raises(DataError, match="nothing can be heard"):
        require_fit({}, STATED, fresh(1.0))


def test_centroids_that_are_equal_are_counted() -> None:
    centroids_KD = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [0.0, 1.0]])
    assert (num_alike(centroids_KD), num_alike(centroids_KD[:2])) == (2, 0)
    assert nearest(centroids_KD, centroids_KD).index_N.tolist() == [0, 1, 0, 0]


def test_other_sizes_are_refused() -> None:
    published = PublishedCodebook(
        centroids_KD=np.zeros((7, 30), np.float32), format="npy", dtype="float32"
    )
    require_shape(published, Path("km.npy"), 7, 30)
    with pytest.raises(RequestError, match="of 30 numbers, but the encoder's features have 32"):
        require_shape(published, Path("km.npy"), 7, 32)
    with pytest.raises(RequestError, match=r"is 500, but km\.npy has 7 centroids; give 7"):
        require_shape(published, Path("km.npy"), 500, 30)


def test_the_file_is_the_one_that_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "km").mkdir()
    (tmp_path / "km" / "km.npy").write_bytes(b"centroids")
    attempt = attempt_in(tmp_path, models={"km": str(tmp_path / "km")})
    digest = hashlib.sha256(b"centroids").hexdigest()
    given = Codebook(model="km", file="km.npy", sha256=digest)
    assert fetched(attempt, given) == tmp_path / "km" / "km.npy"
    other = given.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CorruptError, match=rf"tokenizer\.codebook\.sha256: .* has {digest}, not 0"):
        fetched(attempt, other)
    with pytest.raises(RequestError, match=r"codebook\.file: .*/km/no is no file; check the path"):
        fetched(attempt, given.model_copy(update={"file": "no"}))
