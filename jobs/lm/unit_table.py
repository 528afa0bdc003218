"""What the units' embeddings begin as: draws, or rows of the text model's tables.

In: the text model's table, the recipe's ``embedding_init``, a generator, training tokens. Out: how
each table of the text model becomes one with a row per unit; a head that is no copy of the
embeddings takes the rows of the same text tokens.

``text_nearest`` needs no dictionary of units and words. Embeddings of words are, up to a rotation,
a factorisation of which words occur beside which (Levy and Goldberg 2014, "Neural Word Embedding as
Implicit Matrix Factorization"). Units get vectors of that kind from the training tokens; both sets
of vectors are put on their own principal axes, in order of variance, at variance 1 and with the
longer tail of each axis at its positive end, and every unit takes the text token nearest to it,
frequent units first. Matching the axes by their order is this project's choice.

Shape legend: V text tokens, K units, D width, A axes, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.errors import RequestError

Tokens = npt.NDArray[np.uint16]
RowsOf = Callable[[torch.Tensor], torch.Tensor]
"""From a table of the text model to the one of the units."""
NO_TOKENS: Tokens = np.zeros(0, dtype=np.uint16)
MAX_COUNTED_TOKENS = 20_000_000
"""Unit pairs are counted in so many tokens at most; more change no axis that is used."""
NUM_STRETCHES = 200
"""Of more tokens, stretches are counted that lie evenly over all: tokens are in the order of
sources, and the first of them may be one speaker's."""
WINDOW = 4
"""Units count as beside each other up to this distance."""
NUM_AXES = 10
_ROWS = 8192
"""Rows of a table that are in float64 at a time."""


def unit_rows(
    kind: str,
    table_VD: torch.Tensor,
    num_units: int,
    std: float,
    generator: torch.Generator,
    tokens: Tokens = NO_TOKENS,
) -> RowsOf:
    """How a table of the text model becomes that of the units, in the same precision.

    ``kind``: the recipe's ``embedding_init``; ``std``: of what is drawn. Raises RequestError when
    there are fewer text tokens than units that are to begin as one each.
    """
    if kind == "random":
        return lambda old_VD: _drawn_like(old_VD, num_units, std, generator)
    if kind == "text_mean":
        return lambda old_VD: _mean(old_VD).expand(num_units, -1).contiguous().to(old_VD.dtype)
    if len(table_VD) < num_units:
        raise RequestError(
            f"model.embedding_init: the text model has {len(table_VD)} tokens, fewer than the "
            f"{num_units} units that are to begin as one each; use random or text_mean"
        )
    if kind == "text_sample":
        chosen_K = torch.randperm(len(table_VD), generator=generator)[:num_units]
    else:
        text_VD = table_VD.detach().float().numpy()
        chosen_K = torch.from_numpy(nearest_tokens(text_VD, cooccurrences(tokens, num_units)))
    return lambda old_VD: old_VD.detach()[chosen_K].clone()


def cooccurrences(
    tokens: Tokens, num_units: int, *, most: int = MAX_COUNTED_TOKENS
) -> npt.NDArray[np.float64]:
    """``counts_KK``: how often each unit stands at most `WINDOW` tokens from each other one.

    ``most``: tokens that are counted; of more, stretches.
    """
    counts_KK = np.zeros((num_units, num_units))
    for stretch in _stretches(len(tokens), most):
        tokens_T = np.asarray(tokens[stretch], dtype=np.int64)
        for distance in range(1, WINDOW + 1):
            pairs = tokens_T[:-distance] * num_units + tokens_T[distance:]
            counts_KK += np.bincount(pairs, minlength=num_units**2).reshape(num_units, num_units)
    return counts_KK + counts_KK.T


def _stretches(num_tokens: int, most: int) -> list[slice]:
    """All tokens, or `NUM_STRETCHES` even parts of what may be counted, evenly far apart."""
    if num_tokens <= most:
        return [slice(0, num_tokens)]
    length = most // NUM_STRETCHES
    starts = np.linspace(0, num_tokens - length, NUM_STRETCHES).astype(np.int64)
    return [slice(int(start), int(start) + length) for start in starts]


def nearest_tokens(
    text_VD: npt.NDArray[np.floating], counts_KK: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """``chosen_K``: the text token of each unit, no token for two."""
    num_axes = min(NUM_AXES, text_VD.shape[1], len(counts_KK) - 1)
    text_VA = _on_principal_axes(text_VD, num_axes)
    units_KA = _on_principal_axes(_spectral(_positive_pmi(counts_KK)), num_axes)
    chosen_K = np.zeros(len(units_KA), dtype=np.int64)
    for unit in np.argsort(-counts_KK.sum(axis=1), kind="stable"):
        distances_V = ((text_VA - units_KA[unit]) ** 2).sum(axis=1)
        chosen_K[unit] = np.argmin(distances_V)
        text_VA[chosen_K[unit]] = np.inf  # taken
    return chosen_K


def _positive_pmi(counts_KK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pointwise mutual information in nats, 0 where it is negative or nothing was counted."""
    sums_K = counts_KK.sum(axis=1)
    expected_KK = np.outer(sums_K, sums_K) / max(sums_K.sum(), 1.0)
    pmi_KK = np.zeros_like(counts_KK)
    np.log(counts_KK / np.where(expected_KK > 0, expected_KK, 1.0), out=pmi_KK, where=counts_KK > 0)
    return np.maximum(pmi_KK, 0.0)


def _spectral(pmi_KK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Vectors of units that factorise a symmetric matrix, each eigenvector by its strength."""
    values_K, vectors_KK = np.linalg.eigh(pmi_KK)
    return np.asarray(vectors_KK * np.sqrt(np.abs(values_K)))


def _on_principal_axes(
    vectors_ND: npt.NDArray[np.floating], num_axes: int
) -> npt.NDArray[np.float64]:
    """Vectors on the axes of most variance, each of variance 1, its longer tail positive.

    All is done in float64, a block of rows at a time: a text model's table may be gigabytes.
    """
    blocks = [vectors_ND[n : n + _ROWS] for n in range(0, len(vectors_ND), _ROWS)]
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    scatter_DD = sum((b_BD - mean_D).T @ (b_BD - mean_D) for b_BD in blocks)
    _, axes_DD = np.linalg.eigh(scatter_DD)
    axes_DA = axes_DD[:, ::-1][:, :num_axes]
    on_axes_NA = np.concatenate([(b_BD - mean_D) @ axes_DA for b_BD in blocks])
    on_axes_NA *= np.where((on_axes_NA**3).sum(axis=0) < 0, -1.0, 1.0)
    return np.asarray(on_axes_NA / np.maximum(on_axes_NA.std(axis=0), 1e-12))


def _mean(old_VD: torch.Tensor) -> torch.Tensor:
    return old_VD.detach().double().mean(dim=0, keepdim=True)


def _drawn_like(
    old_VD: torch.Tensor, num_units: int, std: float, generator: torch.Generator
) -> torch.Tensor:
    new_KD = torch.empty(num_units, old_VD.shape[1]).normal_(0.0, std, generator=generator)
    return new_KD.to(old_VD.dtype)
