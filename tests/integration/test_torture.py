"""Everything that is known to break readers of speech, through listing and decoding."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root
from jobs.speech.account import Account, Books
from jobs.speech.account import Fate as Booked
from jobs.speech.units import shard_bytes
from jobs.speech.utterances import ShardAudio, WaveReader
from jobs.unit_shards import read_shard
from orchestrator.ledger.source_files import as_text
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Corpus
from tests.corpora import make_corpus
from tests.torture import CASES, Case, Fate, make_tree

pytestmark = pytest.mark.slow

CORPUS = Corpus.model_validate(
    {
        "sources": [{"name": "t", "adapter": "folder", "language": "from_folder"}],
        "languages": ["en"],
        "windows": {"min_s": 0.4, "max_s": 8.0},
        "shard_hours": 0.01,
        "max_quarantine_percent": 100,
    }
)


def test_each_file_has_the_fate_that_its_table_says(tmp_path: Path) -> None:
    make_tree(tmp_path / "audio")
    roots = {"t": Root(tmp_path / "audio")}
    listing = list_corpus(CORPUS, roots)
    tables = make_corpus(Storage(str(tmp_path / "out")), CORPUS, roots)
    books, reader, names = Books(), WaveReader(roots), Counter[str]()
    used_samples, reasons = Counter[str](), dict[str, str]()
    for number in range(tables.num_shards):
        audio = ShardAudio(tables.shard(number).parts(), CORPUS.windows)
        units = dict.fromkeys(range(sum(1 for _ in audio.waves(reader))), np.zeros(1, "u2"))
        shard = read_shard(shard_bytes(audio, units, dedup=False))
        books.add(number, Account.of(shard))
        for row in shard.to_pylist():
            names[row["id"]] += not row["unreadable"]
            reason = row["unreadable"] or row["left_out"]
            used_samples[row["recording"]] += 0 if reason else row["num_samples"]
    for fate in (Booked.LEFT_OUT, Booked.UNREADABLE):
        reasons |= {o.id: o.reason for o in books.of_fate(fate)}
    assert max(names.values()) == 1
    bad = {o.id for o in books.of_fate(Booked.UNREADABLE)}
    never_opened = {row["id"]: row["reason"] for row in listing.quarantine.to_pylist()}
    ids = {row["path"]: row["id"] for row in listing.wanted.to_pylist()}

    def found(case: Case) -> tuple[Fate, float, str]:
        path = f"en/{as_text(case.path)}"
        if path not in ids:
            reason = never_opened.get(f"t/{path.removesuffix('.wav')}", "")
            return (Fate.QUARANTINED if reason else Fate.NOT_LISTED), 0.0, reason
        name = ids[path]
        reason = reasons.get(name, "")
        if name in bad:
            return Fate.QUARANTINED, 0.0, reason
        seconds = used_samples[name] / SAMPLE_RATE_HZ
        return (Fate.USED if seconds else Fate.LEFT_OUT), seconds, reason

    wrong = {c.path: (c, found(c)) for c in CASES if not _is_as_said(c, *found(c))}
    assert not wrong
    facts = books.facts()
    counted = (facts["num_recordings"], facts["num_left_out"], facts["num_quarantined"])
    assert sum(counted) == listing.wanted.num_rows
    assert facts["used_hours"] * 3600 * SAMPLE_RATE_HZ == pytest.approx(
        sum(n for name, n in used_samples.items() if name not in bad)
    )


def _is_as_said(case: Case, fate: Fate, seconds: float, reason: str) -> bool:
    is_long = abs(seconds - case.seconds) <= case.within_s + 1e-6
    return fate is case.fate and is_long and bool(re.search(case.reason, reason))
