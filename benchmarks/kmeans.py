"""k-means of a codebook, against what fairseq's script and faiss do with the same frames.

``python -m benchmarks.kmeans [--audio FOLDER]``. Frames are those of all layers of an encoder side
by side, by default the demo's: 768 numbers each, of speech in the folder, or of noise without one.
Every way fits all frames; the inertia of its centroids is computed in one way for all.
Rounds are interleaved, and seconds are those of CPU, of all threads, which a busy machine does not
lengthen. scikit-learn and faiss take part where they are installed. What starts a fit is drawn by a
seed, and fits differ by it: every round has another, and says its figures as it ends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.encoders import noise_of
from jobs.audio.decode import AUDIO_SUFFIXES, UnreadableAudioError, Wave, decode
from jobs.speech.lloyd import BlocksInMemory, fit, nearest
from orchestrator.quantities import SAMPLE_RATE_HZ

DEMO_ENCODER = Path(__file__).parents[1] / "recipes" / "assets" / "hubert-demo"
FAIRSEQ = {
    "init": "k-means++",
    "max_iter": 100,
    "batch_size": 10_000,
    "compute_labels": False,
    "tol": 0.0,
    "max_no_improvement": 100,
    "n_init": 20,
    "reassignment_ratio": 0.0,
}
"""The defaults of examples/hubert/simple_kmeans/learn_kmeans.py."""
BLOCK_FRAMES = 12_000
"""Of ours: what `jobs.speech.feature_blocks` makes of four minutes at 50 Hz."""
_LONGEST_S = 30
_FAISS_ITERATIONS = 25
Fitting = Callable[[Tensor, int, int], Tensor]
"""Of ``feats_ND``, the number of clusters and a seed: ``centroids_KD``."""


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path, help="speech, in whatever formats")
    parser.add_argument("--encoder", type=Path, default=DEMO_ENCODER, help="a folder of its files")
    parser.add_argument("--features", type=Path, help="frames as .npy, made where there are none")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.features and options.features.exists():
        feats_ND = torch.from_numpy(np.load(options.features))[: options.frames]
    else:
        heard = waves(options.audio) if options.audio else made_up()
        feats_ND = features(heard, options.encoder, options.frames)
    if options.features and not options.features.exists():
        np.save(options.features, feats_ND.numpy())
    for num_clusters in options.clusters:
        compare(feats_ND, num_clusters, options.rounds)


def compare(feats_ND: Tensor, num_clusters: int, rounds: int) -> None:
    """Print seconds of CPU and inertia of each way, and ours over the others', with spreads."""
    size = " x ".join(map(str, feats_ND.shape))
    print(f"{size} frames, {num_clusters} clusters, {torch.get_num_threads()} threads")
    fittings = {"ours": ours}
    for name, module, fitting in (
        ("scikit-learn, as fairseq", "sklearn", of_sklearn),
        ("faiss", "faiss", of_faiss),
    ):
        if find_spec(module):
            fittings[name] = fitting
        else:
            print(f"{name:26} skipped: no {module}")
    took: dict[str, list[float]] = {name: [] for name in fittings}
    inertias: dict[str, list[float]] = {name: [] for name in fittings}
    for seed in range(rounds):
        for name, fitting in fittings.items():
            started = time.process_time()
            centroids_KD = fitting(feats_ND, num_clusters, seed)
            took[name].append(time.process_time() - started)
            inertias[name].append(inertia(feats_ND, centroids_KD))
            print(f"round {seed}: {name} {took[name][-1]:.2f} s", flush=True)
    for name in fittings:
        faster = [it / own for it, own in zip(took[name], took["ours"], strict=True)]
        above = [own / it for it, own in zip(inertias[name], inertias["ours"], strict=True)]
        print(
            f"{name:26} {statistics.median(took[name]):7.2f} s, inertia "
            f"{statistics.median(inertias[name]):.5g} a frame; ours {spread(faster)} times as fast,"
            f" inertia {spread(above, 4)} of its"
        )


def ours(feats_ND: Tensor, num_clusters: int, seed: int) -> Tensor:
    """As the codebook stage does, but for the pool of workers."""
    return fit(BlocksInMemory(feats_ND.split(BLOCK_FRAMES)), num_clusters, seed).centroids


def of_sklearn(feats_ND: Tensor, num_clusters: int, seed: int) -> Tensor:
    """As most scripts for codebooks of HuBERT do."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(num_clusters, random_state=seed, **FAIRSEQ).fit(feats_ND.numpy())
    return torch.from_numpy(model.cluster_centers_).float()


def of_faiss(feats_ND: Tensor, num_clusters: int, seed: int) -> Tensor:
    """With its own settings, but of all frames as the others do."""
    import faiss

    num_frames, dim = feats_ND.shape
    faiss.omp_set_num_threads(torch.get_num_threads())
    model = faiss.Kmeans(
        dim, num_clusters, niter=_FAISS_ITERATIONS, seed=seed, max_points_per_centroid=num_frames
    )
    model.train(feats_ND.numpy())
    return torch.from_numpy(model.centroids)


def inertia(feats_ND: Tensor, centroids_KD: Tensor) -> float:
    """Mean squared distance to the nearest centroid."""
    return float(nearest(feats_ND, centroids_KD).distance_N.double().mean())


def features(heard: Iterable[Wave], encoder: Path, most: int) -> Tensor:
    """``feats_ND`` of waves until they are enough; all layers together."""
    import transformers

    model = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    parts: list[Tensor] = []
    for wav_S in heard:
        if sum(map(len, parts)) >= most:
            break
        with torch.inference_mode():
            states = model(torch.from_numpy(wav_S)[None], output_hidden_states=True).hidden_states
        parts.append(torch.cat(states[1:], 2)[0].clone())
    return torch.cat(parts)[:most]


def waves(folder: Path) -> Iterator[Wave]:
    """Of files below a folder that can be read, by name, in pieces of at most `_LONGEST_S`."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix in AUDIO_SUFFIXES):
        try:
            wav_S = decode(path)
        except UnreadableAudioError:
            continue
        for start in range(0, len(wav_S), _LONGEST_S * SAMPLE_RATE_HZ):
            piece_S = wav_S[start : start + _LONGEST_S * SAMPLE_RATE_HZ]
            if len(piece_S) >= SAMPLE_RATE_HZ:
                yield piece_S


def made_up() -> Iterator[Wave]:
    """Noise without end, in pieces."""
    rng = np.random.default_rng(0)
    while True:
        yield noise_of(rng, _LONGEST_S)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and the range."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
