"""Spotify Podcasts: episodes in Ogg with one table of metadata (Clifton et al., COLING 2020).

``<P5>/<P6>/<show_filename_prefix>/<episode_filename_prefix>.ogg`` below any folder, P5 and P6 being
characters 5 and 6 of the show's prefix in capitals; ``metadata.tsv``, whose language is what the
show's makers said, written like a list: ``['en-US']``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem, stem
from jobs.audio.languages import language_code
from jobs.audio.lists import NOT_BELOW_ROOT, rows
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

METADATA = "metadata.tsv"
_TABLES = (METADATA, f"{METADATA}.gz")
_COLUMNS = ("show_filename_prefix", "episode_filename_prefix", "language", "publisher")


def recordings(tree: Tree) -> Iterator[Recording]:
    """All episodes; a session is a show, its publisher stands for the speaker.

    One that the table alone knows has that as its problem. Raises DataError without the table.
    """
    leaves = list(tree.leaves())
    said = _metadata(tree, leaves)
    yield from _missing(leaves, said)
    for name, leaf in by_stem(leaves):
        path = PurePosixPath(leaf.path)
        row = said.get((path.parent.name, path.stem))
        if row is None:
            yield Recording(name, leaf, session=path.parent.name, left_out="not in metadata.tsv")
            continue
        yield Recording(
            name,
            leaf,
            language=language_of(row["language"]),
            speaker=row["publisher"],
            session=path.parent.name,
        )


def _missing(
    leaves: list[Leaf], said: Mapping[tuple[str, str], Mapping[str, str]]
) -> Iterator[Recording]:
    """Episodes of the table without a file, where it would be beside the others."""
    paths = [PurePosixPath(leaf.path) for leaf in leaves if leaf.is_audio]
    there = {(path.parent.name, path.stem) for path in paths}
    root = paths[0].parents[min(3, len(paths[0].parents) - 1)] if paths else PurePosixPath()
    for show, episode in (key for key in said if key not in there):
        path = root / show[5:6].upper() / show[6:7].upper() / show / f"{episode}.ogg"
        yield Recording(
            stem(str(path)),
            Leaf(str(path), 0, problem=NOT_BELOW_ROOT),
            language=language_of(said[show, episode]["language"]),
            session=show,
        )


def language_of(said: str) -> str:
    """The language of a tag such as ``['en-US']``."""
    found = re.search("[a-zA-Z]+", said)
    return language_code(found[0]) if found else ""


def _metadata(tree: Tree, leaves: list[Leaf]) -> dict[tuple[str, str], dict[str, str]]:
    tables = [leaf for leaf in leaves if PurePosixPath(leaf.path).name in _TABLES]
    if not tables:
        raise DataError(f"has no {METADATA}; put it below the root")
    return {
        (row["show_filename_prefix"], row["episode_filename_prefix"]): row
        for table in tables
        for _, row in rows(tree, table, "\t", _COLUMNS, quoted=True)
    }
