"""Manifests of fairseq and wav2vec: a root in the first line, then path and samples by tab.

Every ``*.tsv`` at the top of the tree is one; paths count from its root where that is relative, and
from the tree's where the manifest's own is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, lines, listed, stem
from jobs.audio.trees import Tree
from orchestrator.errors import DataError


def recordings(tree: Tree) -> Iterator[Recording]:
    """All files that the manifests list, each once.

    Raises DataError for a line that is none.
    """
    leaves = {leaf.path: leaf for leaf in tree.leaves()}
    seen: set[str] = set()
    for manifest in [leaf for leaf in leaves.values() if _is_manifest(leaf.path)]:
        root, *rest = lines(tree, manifest)
        for number, line in enumerate(rest, 2):
            name, tab, num_samples = line.partition("\t")
            if not tab or not num_samples.strip().isdecimal():
                raise DataError(f"{manifest.path}: line {number}: no path and number of samples")
            leaf = listed(leaves, str(PurePosixPath(root, name)), name)
            if leaf.path not in seen:
                seen.add(leaf.path)
                yield Recording(stem(leaf.path), leaf, speaker=str(PurePosixPath(name).parent))


def _is_manifest(path: str) -> bool:
    return path.endswith(".tsv") and "/" not in path
