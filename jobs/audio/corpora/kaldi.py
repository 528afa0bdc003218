"""A Kaldi data folder: ``wav.scp``, and ``segments``, ``utt2spk``, ``utt2lang`` where they are.

kaldi-asr.org/doc/data_prep.html. A pipe in ``wav.scp`` is a command for a shell: refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jobs.audio.corpora.recording import Recording, language_code, lines, listed
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError, RequestError


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances, or whole recordings where there are no ``segments``.

    Raises RequestError for a pipe, DataError for what is no such folder.
    """
    leaves = {leaf.path: leaf for leaf in tree.leaves()}
    files = _files(tree, leaves)
    speakers, languages = (_table(tree, leaves, name) for name in ("utt2spk", "utt2lang"))
    for name, recording, spans in _utterances(tree, leaves, files):
        yield Recording(
            name,
            files[recording],
            spans_s=spans,
            language=language_code(languages.get(name, "")),
            speaker=speakers.get(name, ""),
            session=recording,
        )


def _files(tree: Tree, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """The file of each recording."""
    found = {}
    for name, path in _table(tree, leaves, "wav.scp", is_needed=True).items():
        if path.endswith("|") or path.startswith("|"):
            raise RequestError(
                f"wav.scp: {name}: {path!r} is a command for a shell; write the files that it makes"
            )
        found[name] = listed(leaves, path)
    return found


def _utterances(
    tree: Tree, leaves: Mapping[str, Leaf], files: Mapping[str, Leaf]
) -> Iterator[tuple[str, str, tuple[tuple[float, float], ...]]]:
    segments = _table(tree, leaves, "segments")
    if not segments:
        yield from ((name, name, ()) for name in files)
    for name, words in segments.items():
        try:
            recording, start, end = words.split()
            span = (float(start), float("inf") if float(end) < 0 else float(end))
        except ValueError:
            raise DataError(f"segments: {name}: {words!r}: no recording, start and end") from None
        if recording not in files:
            raise DataError(f"segments: {name}: {recording} is not in wav.scp")
        yield name, recording, (span,)


def _table(
    tree: Tree, leaves: Mapping[str, Leaf], name: str, *, is_needed: bool = False
) -> dict[str, str]:
    """A file of lines that begin with an id. Raises DataError when it must be there and is not."""
    if name not in leaves:
        if is_needed:
            raise DataError(f"has no {name}; it is no Kaldi data folder")
        return {}
    pairs = (line.partition(" ") for line in lines(tree, leaves[name]))
    return {first: rest.strip() for first, _, rest in pairs}
