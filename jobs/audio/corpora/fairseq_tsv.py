"""Manifests of fairseq and wav2vec: a root in the first line, then path and samples by tab.

Every ``*.tsv`` at the top of the tree is one; paths count from its root where that is relative, and
from the tree's where the manifest's own is elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, stem
from jobs.audio.lists import Files, lines
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError


def recordings(tree: Tree) -> Iterator[Recording]:
    """All files that the manifests list, each once.

    Raises DataError for a line that is none, and where there is no manifest.
    """
    leaves = list(tree.leaves())
    files, listed = Files(tree, leaves), dict[str, tuple[Leaf, str]]()
    manifests = [leaf for leaf in leaves if _is_manifest(leaf.path)]
    if not manifests:
        raise DataError("has no .tsv at its top; put the manifests there")
    for manifest in manifests:
        for leaf, name in _rows(tree, manifest, files):
            listed.setdefault(leaf.path, (leaf, name))
    stems = Counter(map(stem, listed))
    for path, (leaf, name) in listed.items():
        is_alone = stems[stem(path)] == 1
        speaker = str(PurePosixPath(name).parent)
        yield Recording(stem(path) if is_alone else path, leaf, speaker=speaker)


def _rows(tree: Tree, manifest: Leaf, files: Files) -> Iterator[tuple[Leaf, str]]:
    """Each file of a manifest, with its name there."""
    root = None
    for where, line in lines(tree, manifest):
        name, tab, num_samples = line.partition("\t")
        is_row = bool(tab) and num_samples.strip().isdecimal()
        if root is None and not tab:
            root = line.strip()
        elif root is not None and is_row:
            yield files.named(where, str(PurePosixPath(root, name)), name), name
        else:
            needed = "path and number of samples" if root else "root: the first line is a folder"
            raise DataError(f"{where}: no {needed}; repair it")


def _is_manifest(path: str) -> bool:
    return path.endswith(".tsv") and "/" not in path
