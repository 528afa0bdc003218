"""WebDataset: members of tars, those of one sample named alike up to their first dot.

github.com/webdataset/webdataset. A ``.json`` beside the audio may name ``language`` and
``speaker``. The tree has to be read as tars, or the same files unpacked. A key that several tars
have is told apart by their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, up_to_a_dot
from jobs.audio.languages import language_code
from jobs.audio.lists import json_of
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

NO_AUDIO = "has a .json in its tar, and no audio"


def recordings(tree: Tree) -> Iterator[Recording]:
    """One recording a sample; a member of a tar that is JSON alone has that as its problem.

    Raises DataError when a sample has two audio files.
    """
    for alike in up_to_a_dot(tree.leaves()):
        samples: dict[str, list[Leaf]] = {}
        for leaf in alike:
            samples.setdefault(leaf.archive, []).append(leaf)
        for sample in samples.values():
            yield from _of_sample(tree, sample, is_one_of_several=len(samples) > 1)


def _of_sample(tree: Tree, leaves: list[Leaf], *, is_one_of_several: bool) -> Iterator[Recording]:
    """Its recording, where it has one; ``is_one_of_several``: of this key, in as many tars."""
    key, audio = key_of(leaves[0].path), [leaf for leaf in leaves if leaf.is_audio]
    if len(audio) > 1:
        names = " and ".join(leaf.path for leaf in audio)
        raise DataError(f"{key}: {names} are one sample; name them apart")
    about = [leaf for leaf in leaves if leaf.path == f"{key}.json"]
    is_lost = not audio and bool(about) and bool(about[0].archive)
    facts = json_of(tree, about[0]) if about and (audio or is_lost) else {}
    for leaf in [about[0]._replace(problem=NO_AUDIO)] if is_lost else audio:
        yield Recording(
            f"{leaf.archive}/{key}" if is_one_of_several else key,
            leaf,
            language=language_code(str(facts.get("language") or "")),
            speaker=str(facts.get("speaker") or ""),
        )


def key_of(path: str) -> str:
    """The name of a sample: up to the first dot of the last part."""
    whole = PurePosixPath(path)
    return str(whole.with_name(whole.name.partition(".")[0]))
