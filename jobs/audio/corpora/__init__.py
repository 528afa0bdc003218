"""How corpora are laid out: one module each, named as recipes name it.

Each has ``recordings(tree)``, which gives the recordings of a `trees.Tree` in an order of its own.
Adding a corpus is adding its module here and its name in ``spec/recipe.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from jobs.audio.corpora.recording import Recording
from jobs.audio.trees import Tree

Adapter = Callable[[Tree], Iterator[Recording]]


def adapter(name: str) -> Adapter:
    """The adapter of a name."""
    found: Adapter = importlib.import_module(f"{__name__}.{name}").recordings
    return found
