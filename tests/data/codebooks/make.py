"""Makes the files of this folder; see README.md."""

from __future__ import annotations

import pickle
from pathlib import Path

import faiss
import joblib
import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

HERE = Path(__file__).parent
OLD = {
    b"csklearn.cluster._kmeans\n": b"csklearn.cluster.k_means_\n",
    b"cjoblib.numpy_pickle\n": b"csklearn.externals.joblib.numpy_pickle\n",
}


def renamed(path: Path) -> None:
    """Give modules their old names."""
    data = path.read_bytes()
    for new, old in OLD.items():
        data = data.replace(new, old)
    path.write_bytes(data)


def index(path: str, kind: str, *, metric: int = faiss.METRIC_L2) -> None:
    """A trained index over the centroids."""
    made = faiss.index_factory(6, kind, metric)
    made.train(FRAMES)
    made.add(CENTERS)
    faiss.write_index(made, str(HERE / path))


FRAMES = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
FITTED = KMeans(5, random_state=0, n_init=1).fit(FRAMES)
CENTERS = FITTED.cluster_centers_
MINI = MiniBatchKMeans(5, random_state=np.random.RandomState(0), n_init=1).fit(FRAMES)
MINI.cluster_centers_ = np.asfortranarray(CENTERS)
np.save(HERE / "expected.npy", CENTERS)
np.save(HERE / "float64.npy", CENTERS.astype(np.float64))
joblib.dump(FITTED, HERE / "kmeans.joblib")
joblib.dump(MINI, HERE / "minibatch.joblib")
for method in ("zlib", "gzip", "bz2", "lzma", "xz"):
    joblib.dump(FITTED, HERE / f"{method}.joblib", compress=(method, 3))
for protocol in (0, 2, 5):
    (HERE / f"protocol-{protocol}.pickle").write_bytes(pickle.dumps(FITTED, protocol=protocol))
joblib.dump(FITTED, HERE / "old-paths.joblib", protocol=2)
(HERE / "old-paths.pickle").write_bytes(pickle.dumps(FITTED, protocol=2))
for old in ("old-paths.joblib", "old-paths.pickle"):
    renamed(HERE / old)
index("flat.faiss", "Flat")
index("inner-product.faiss", "Flat", metric=faiss.METRIC_INNER_PRODUCT)
index("ivf.faiss", "IVF2,Flat")
index("transformed.faiss", "PCA4,Flat")
