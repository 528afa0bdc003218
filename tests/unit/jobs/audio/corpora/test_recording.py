from __future__ import annotations

import itertools
import random
from collections import Counter

from jobs.audio.corpora.recording import by_stem, stem
from jobs.audio.trees import Leaf, in_order

PARTS = ("a", "a.wav", "a.b", "b", "a-b", "b.flac")
SUFFIXES = (".wav", ".flac", ".wav.flac", ".b.wav", ".txt", "")


def _all_at_once(paths: list[str]) -> dict[str, str]:
    """What each file is called, with all of them in memory."""
    audio = [path for path in paths if Leaf(path, 0).is_audio]
    stems = Counter(map(stem, audio))
    is_free = {p: stems[stem(p)] == 1 and stem(p) not in audio for p in audio}
    return {path: stem(path) if is_free[path] else path for path in audio}


def test_files_are_called_the_same_when_few_are_in_memory() -> None:
    folders = ["", *(f"{p}/" for p in PARTS), *(f"{p}/{q}/" for p in PARTS for q in PARTS)]
    every = sorted({"".join(parts) for parts in itertools.product(folders, PARTS, SUFFIXES)})
    for seed in range(15):
        paths = random.Random(seed).sample(every, 150)
        files = in_order(Leaf(path, 1) for path in paths)
        found = [(leaf.path, name) for name, leaf in by_stem(files)]
        assert dict(found) == _all_at_once(paths)
        assert len(found) == len(dict(found))


def test_files_are_in_the_order_that_python_gives_them() -> None:
    random_ = random.Random(0)
    leaves = [
        Leaf("".join(random_.choices("aé/.𝄞-Z", k=4)), random_.randrange(2), "", "x.tar", number)
        for number in range(70_000)
    ]
    assert list(in_order(leaves)) == sorted(leaves)
