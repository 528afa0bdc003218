"""Each corpus in the layout in which it is published, in folders and in tars alike."""

from __future__ import annotations

import json
import pkgutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pytest

from jobs.audio import corpora
from jobs.audio.corpora.recording import Recording
from jobs.audio.lists import NOT_BELOW_ROOT
from jobs.audio.trees import TarTree
from orchestrator.errors import DataError
from orchestrator.spec.recipe import Adapter
from tests.unit.jobs.audio.corpora.layouts import (
    AUDIO,
    as_tars,
    gzipped,
    json_lines,
    listed,
    listed_in_tars,
    write,
)

NOT_ADAPTERS = {"recording", "hf_parquet"}

LIBRI_LIGHT_JSON = (
    '{"speaker": "960", "book_meta": {"id": "1"}, "snr": 5.391, '
    '"voice_activity": [[0.4, 12.32], [13.0, 20.08]], "file_length_sec": 21.0}'
)
SPOTIFY_HEADER = (
    "show_uri\tshow_name\tshow_description\tpublisher\tlanguage\trss_link\tepisode_uri\t"
    "episode_name\tepisode_description\tduration\tshow_filename_prefix\tepisode_filename_prefix\n"
)
SPOTIFY_ROWS = (
    'spotify:show:7goz\tA show\t"Two\nlines, and a ""quote"""\tJane\t[\'en-US\']\thttp://x\t'
    "spotify:episode:4vYO\tFirst\tWords\t31.680000\tshow_7gozmLqbcbr6PScMjc0Zl4\t4vYO\n"
    "spotify:show:7goz\tA show\tText\tJoão\t['pt']\thttp://x\t"
    "spotify:episode:5abc\tSecond\tWords\t1.5\tshow_7gozmLqbcbr6PScMjc0Zl4\t5abc\n"
)
ASR_HEADER = (
    "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent\n"
)


def recording_of(
    name: str, kind: str, source: str, duration: float, channels: Sequence[int] = (0,)
) -> dict[str, object]:
    """As Lhotse writes it down."""
    return {
        "id": name,
        "sources": [{"type": kind, "channels": list(channels), "source": source}],
        "sampling_rate": 16000,
        "num_samples": round(duration * 16000),
        "duration": duration,
        "channel_ids": list(channels),
    }


LAYOUTS: dict[str, tuple[Mapping[str, bytes | str], list[tuple[object, ...]]]] = {
    "folder": (
        {"en/bob/a.wav": AUDIO, "en/bob/a.mp3": AUDIO, "es/ana/b.FLAC": AUDIO, "en/notes.txt": ""},
        [
            ("en/bob/a.mp3", (), "en", "en/bob", "", ""),
            ("en/bob/a.wav", (), "en", "en/bob", "", ""),
            ("es/ana/b", (), "es", "es/ana", "", ""),
        ],
    ),
    "librispeech": (
        {
            "dev-clean/121/121726/121-121726-0000.flac": AUDIO,
            "dev-clean/121/121726/121-121726.trans.txt": "121-121726-0000 ALSO A POPULAR\n",
        },
        [("dev-clean/121/121726/121-121726-0000", (), "en", "121", "", "")],
    ),
    "libri_light": (
        {
            "small/960/a_book/one_64kb.flac": AUDIO,
            "small/960/a_book/one_64kb.json": LIBRI_LIGHT_JSON,
            "duplicate/960/flac_book/two_64kb.flac": AUDIO,
            "duplicate/960/flac_book/two_64kb.json": LIBRI_LIGHT_JSON,
        },
        [
            ("duplicate/960/flac_book/two_64kb", ((0.4, 12.32), (13.0, 20.08)), "en", "960",
             "duplicate/960/flac_book", "duplicate"),
            ("small/960/a_book/one_64kb", ((0.4, 12.32), (13.0, 20.08)), "en", "960",
             "small/960/a_book", ""),
        ],
    ),
    "mls": (
        {
            "mls_german_opus/train/audio/10087/10388/10087_10388_000000.opus": AUDIO,
            "mls_german_opus/train/transcripts.txt": "10087_10388_000000\tworte\n",
            "mls_german_opus/metainfo.txt": "SPEAKER | GENDER\n",
        },
        [("mls_german_opus/train/audio/10087/10388/10087_10388_000000", (), "de", "10087",
          "10087_10388", "")],
    ),
    "spotify": (
        {
            "metadata.tsv": SPOTIFY_HEADER + SPOTIFY_ROWS,
            "podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/4vYO.ogg": AUDIO,
            "podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/5abc.ogg": AUDIO,
            "podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/unknown.ogg": AUDIO,
        },
        [
            ("podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/4vYO", (), "en", "Jane",
             "show_7gozmLqbcbr6PScMjc0Zl4", ""),
            ("podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/5abc", (), "pt", "João",
             "show_7gozmLqbcbr6PScMjc0Zl4", ""),
            ("podcasts-audio/7/G/show_7gozmLqbcbr6PScMjc0Zl4/unknown", (), "", "",
             "show_7gozmLqbcbr6PScMjc0Zl4", "not in metadata.tsv"),
        ],
    ),
    "voxpopuli": (
        {
            "raw_audios/en/2009/20090914-0900-PLENARY-3_en.ogg": AUDIO,
            "raw_audios/original/2009/20090914-0900-PLENARY_original.ogg": AUDIO,
            "annotations/unlabelled_v2.tsv.gz": gzipped(
                "event_id\tsegment_no\tstart\tend\n"
                "20090914-0900-PLENARY-3_en\t1\t30.5\t60.0\n"
                "20090914-0900-PLENARY-3_en\t0\t0.5\t30.5\n"
            ),
            "unlabelled_data/en/2009/20090914-0900-PLENARY-3_en_0.ogg": AUDIO,
            "transcribed_data/en/2009/20090914-0900-PLENARY-3-en_20090914-09:05:19_3.ogg": AUDIO,
            "transcribed_data/en/asr_train.tsv": ASR_HEADER
            + "20090914-0900-PLENARY-3-en_20090914-09:05:19_3\t\"A\tb\t4556\ttrain\tmale\tTrue\t\n",
        },
        [
            ("raw_audios/en/2009/20090914-0900-PLENARY-3_en", ((0.5, 30.5), (30.5, 60.0)), "en",
             "", "20090914-0900-PLENARY", ""),
            ("raw_audios/original/2009/20090914-0900-PLENARY_original", (), "", "",
             "20090914-0900-PLENARY", ""),
            ("transcribed_data/en/2009/20090914-0900-PLENARY-3-en_20090914-09:05:19_3", (), "en",
             "4556", "20090914-0900-PLENARY", ""),
            ("unlabelled_data/en/2009/20090914-0900-PLENARY-3_en_0", (), "en", "",
             "20090914-0900-PLENARY", ""),
        ],
    ),
    "peoples_speech": (
        {
            "train/clean/gov_DOT_uscourts_SLASH_19-161/gov_DOT_uscourts_00002.flac": AUDIO,
            "train/clean.json": json_lines({"identifier": "x", "training_data": {"name": []}}),
        },
        [("train/clean/gov_DOT_uscourts_SLASH_19-161/gov_DOT_uscourts_00002", (), "en",
          "gov_DOT_uscourts_SLASH_19-161", "gov_DOT_uscourts_SLASH_19-161", "")],
    ),
    "fairseq_tsv": (
        {
            "train.tsv": "/data/LibriSpeech\n121/a.flac\t16000\n121/b.flac\t32000\n",
            "valid.tsv": "/data/LibriSpeech\n121/b.flac\t32000\n",
            "121/a.flac": AUDIO,
            "121/b.flac": AUDIO,
            "121/not listed.flac": AUDIO,
        },
        [("121/a", (), "", "121", "", ""), ("121/b", (), "", "121", "", "")],
    ),
    "kaldi": (
        {
            "wav.scp": "rec1 audio/one.wav\nrec2 audio/two.wav\n",
            "segments": "utt1 rec1 0.5 2.25\nutt2 rec1 3 -1\n",
            "utt2spk": "utt1 bob\nutt2 ana\n",
            "utt2lang": "utt1 en\nutt2 es\n",
            "audio/one.wav": AUDIO,
            "audio/two.wav": AUDIO,
        },
        [
            ("utt1", ((0.5, 2.25),), "en", "bob", "rec1", ""),
            ("utt2", ((3.0, float("inf")),), "es", "ana", "rec1", ""),
        ],
    ),
    "webdataset": (
        {
            "EN/EN_B00000_S00000_W000000.mp3": AUDIO,
            "EN/EN_B00000_S00000_W000000.json": '{"id": "x", "language": "EN", "speaker": "S0"}',
            "EN/EN_B00000_S00000_W000001.mp3": AUDIO,
        },
        [
            ("EN/EN_B00000_S00000_W000000", (), "en", "S0", "", ""),
            ("EN/EN_B00000_S00000_W000001", (), "", "", "", ""),
        ],
    ),
    "manifest": (
        {
            "manifest.jsonl": json_lines(
                {"audio_filepath": "./a/one.wav", "duration": 3.0, "text": "", "lang": "en"},
                {"audio_filepath": "a/one.wav", "offset": 1.5, "duration": 1, "speaker_id": "7"},
                {"path": "a/two.wav", "fileid": "the second", "session": "s"},
            ),
            "a/one.wav": AUDIO,
            "a/two.wav": AUDIO,
        },
        [
            ("a/one", (), "en", "", "", ""),
            ("a/one@1.5", ((1.5, 2.5),), "", "7", "a/one", ""),
            ("the second", (), "", "", "s", ""),
        ],
    ),
    "gigaspeech": (
        {
            "GigaSpeech.json": json.dumps({"dataset": "GigaSpeech", "audios": [
                {"aid": "POD1", "path": "audio/podcast/P0001/POD1.opus", "sample_rate": 16000,
                 "segments": [
                     {"sid": "POD1_S0", "speaker": "N/A", "begin_time": 1.5, "end_time": 4,
                      "text_tn": "HELLO <COMMA> THERE", "subsets": ["{XL}"]},
                     {"sid": "POD1_S1", "speaker": "N/A", "begin_time": 4, "end_time": 9.25,
                      "text_tn": "<MUSIC>", "subsets": ["{XL}"]},
                 ]},
            ]}),
            "audio/podcast/P0001/POD1.opus": AUDIO,
        },
        [
            ("POD1_S0", ((1.5, 4.0),), "en", "N/A", "POD1", ""),
            ("POD1_S1", ((4.0, 9.25),), "en", "N/A", "POD1", "no speech"),
        ],
    ),
    "lhotse": (
        {
            "cuts.jsonl.gz": gzipped(json_lines(
                {"id": "c1", "start": 0.5, "duration": 2.0, "channel": 0, "type": "MonoCut",
                 "supervisions": [{"id": "s", "language": "English", "speaker": "bob"}],
                 "recording": recording_of("r1", "file", "audio/r1.flac", 10.0)},
                {"id": "c2", "start": 0, "duration": 10.0, "channel": 0, "type": "MonoCut",
                 "recording": recording_of("r1", "file", "audio/r1.flac", 10.0)},
            )),
            "audio/r1.flac": AUDIO,
        },
        [
            ("c1", ((0.5, 2.5),), "en", "bob", "r1", ""),
            ("c2", (), "", "", "r1", ""),
        ],
    ),
}  # fmt: skip


def fields(recording: Recording) -> tuple[object, ...]:
    return (
        recording.id,
        recording.spans_s,
        recording.language,
        recording.speaker,
        recording.session,
        recording.left_out,
    )


def test_each_corpus_has_a_layout_here_and_a_recipe_may_name_it() -> None:
    modules = {module.name for module in pkgutil.iter_modules(corpora.__path__)}
    assert modules - NOT_ADAPTERS == set(LAYOUTS)
    assert modules - {"recording"} == set(get_args(Adapter))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_corpus_is_listed_as_it_is_published(tmp_path: Path, name: str) -> None:
    files, expected = LAYOUTS[name]
    found = listed(name, write(tmp_path, files))
    assert [fields(recording) for recording in found] == expected
    assert all(r.leaf.size == len(AUDIO) and not r.leaf.archive for r in found)


def test_files_beside_each_other_are_of_nobody(tmp_path: Path) -> None:
    """One's own folder without folders: who speaks in it is not known."""
    root = write(tmp_path, {"a.wav": AUDIO, "b.wav": AUDIO, "en/c.wav": AUDIO})
    assert [r.speaker for r in listed("folder", root)] == ["", "", "en"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_in_tars_the_same_is_listed(tmp_path: Path, name: str) -> None:
    """Folders of audio each as a tar; what lies at the top stays beside them."""
    files, expected = LAYOUTS[name]
    write(tmp_path / "folders", files)
    root = as_tars(tmp_path / "folders", tmp_path / "tars", lambda path: "/" in path)
    found = listed_in_tars(name, root)
    assert [fields(recording) for recording in found] == expected
    for recording in found:
        leaf = recording.leaf
        data = (root / leaf.archive).read_bytes()
        assert data[leaf.offset : leaf.offset + leaf.size] == AUDIO


@pytest.mark.parametrize(("kind", "expected"), [("file", [None, 0, 1]), ("shar", [None] * 3)])
def test_a_cut_of_lhotse_is_of_one_channel(
    tmp_path: Path, kind: str, expected: list[int | None]
) -> None:
    cuts = [
        {"id": f"c{n}", "duration": 9.0, "channel": channel, "type": "MonoCut",
         "recording": recording_of("r", kind, "r.flac", 9.0, channels)}
        for n, (channel, channels) in enumerate([(0, [0]), (2, [2, 5]), (5, [2, 5])])
    ]  # fmt: skip
    write(tmp_path, {"cuts.jsonl.gz": gzipped(json_lines(*cuts)), "r.flac": AUDIO})
    assert [recording.channel for recording in listed("lhotse", tmp_path)] == expected


def test_shar_of_lhotse(tmp_path: Path) -> None:
    """Cuts beside tars, whose members are named by cuts; one shard each."""
    for shard, cuts in enumerate((["a-1", "a-2"], ["b.1"])):
        members = {f"{cut}.flac": AUDIO + cut.encode() for cut in cuts}
        members |= {f"{cut}.json": "{}" for cut in cuts}
        folder = write(tmp_path / str(shard), members)
        (tmp_path / "shar").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shar" / f"recording.{shard:06d}.tar", "w") as tar:
            for name in members:
                tar.add(folder / name, name)
        rows = [
            {"id": cut, "start": 3.0, "duration": 1.0, "channel": 0, "type": "MonoCut",
             "supervisions": [], "recording": recording_of("r", "shar", "", 1.0)}
            for cut in cuts
        ]  # fmt: skip
        write(tmp_path / "shar", {f"cuts.{shard:06d}.jsonl.gz": gzipped(json_lines(*rows))})
    tree = TarTree(tmp_path / "shar")
    found = list(corpora.adapter("lhotse")(tree))
    assert [(r.id, r.spans_s) for r in found] == [("a-1", ()), ("a-2", ()), ("b.1", ())]
    for recording in found:
        with tree.place(recording.leaf).open() as file:
            assert file.read() == AUDIO + recording.id.encode()


def test_what_voxpopuli_lists_of_a_year_that_is_there_is_there_or_named(tmp_path: Path) -> None:
    names = [f"20090914-0900-PLENARY-{n}" for n in range(4)]
    events = [f"{names[0]}_en", f"{names[1]}_en", f"{names[0]}_de", "20100101-0900-PLENARY_en"]
    files = {
        "annotations/unlabelled_v2.tsv": "event_id\tsegment_no\tstart\tend\n"
        + "".join(f"{event}\t0\t0\t1\n" for event in events),
        f"raw_audios/en/2009/{names[0]}_en.ogg": AUDIO,
        f"raw_audios/en/2009/{names[2]}_en.ogg": AUDIO,
        f"raw_audios/es/2009/{names[2]}_es.ogg": AUDIO,
        f"transcribed_data/en/2009/{names[0]}-en_1.ogg": AUDIO,
        f"transcribed_data/de/2009/{names[0]}-de_1.ogg": AUDIO,
        "transcribed_data/en/asr_dev.tsv": ASR_HEADER
        + f"{names[0]}-en_1\tA\ta\t7\tdev\tmale\tTrue\t\n{names[0]}-en_2\tA\ta\t7\tdev\t\tTrue\t\n",
    }
    write(tmp_path / "folders", files)
    root = as_tars(tmp_path / "folders", tmp_path / "tars", lambda path: "raw_audios" in path)
    for found in (listed("voxpopuli", tmp_path / "folders"), listed_in_tars("voxpopuli", root)):
        assert {r.id: r.leaf.problem or r.left_out or r.speaker for r in found} == {
            f"raw_audios/en/2009/{names[0]}_en": "",
            f"raw_audios/en/2009/{names[1]}_en": NOT_BELOW_ROOT,
            f"raw_audios/en/2009/{names[2]}_en": "not in unlabelled_v2.tsv",
            f"raw_audios/es/2009/{names[2]}_es": "",
            f"transcribed_data/en/2009/{names[0]}-en_1": "7",
            f"transcribed_data/en/2009/{names[0]}-en_2": NOT_BELOW_ROOT,
            f"transcribed_data/de/2009/{names[0]}-de_1": "",
        }
        assert {r.language for r in found if r.leaf.problem} == {"en"}


@pytest.mark.parametrize("audio_root", ["podcasts-audio/", ""])
def test_an_episode_that_the_table_alone_knows_is_named(tmp_path: Path, audio_root: str) -> None:
    folder = f"{audio_root}7/G/show_7gozmLqbcbr6PScMjc0Zl4"
    files = {"metadata.tsv": SPOTIFY_HEADER + SPOTIFY_ROWS, f"{folder}/4vYO.ogg": AUDIO}
    write(tmp_path / "folders", files)
    root = as_tars(tmp_path / "folders", tmp_path / "tars", lambda path: "/" in path)
    for found in (listed("spotify", tmp_path / "folders"), listed_in_tars("spotify", root)):
        assert {r.id: (r.language, r.leaf.problem) for r in found} == {
            f"{folder}/4vYO": ("en", ""),
            f"{folder}/5abc": ("pt", NOT_BELOW_ROOT),
        }


LISTED, GONE = "a/there.wav", "a/gone.wav"
LISTS: dict[str, tuple[str, bytes | str]] = {
    "manifest": ("manifest.jsonl", json_lines({"path": LISTED}, {"path": GONE})),
    "manifest csv": ("manifest.csv", f"path,lang\n{LISTED},en\n{GONE},en\n"),
    "fairseq_tsv": ("all.tsv", f"/elsewhere\n{LISTED}\t16000\n{GONE}\t16000\n"),
    "kaldi": ("wav.scp", f"one {LISTED}\ntwo {GONE}\n"),
    "lhotse": (
        "recordings.jsonl.gz",
        gzipped(json_lines(*(recording_of(p, "file", p, 1.0) for p in (LISTED, GONE)))),
    ),
    "lhotse cuts": (
        "cuts.jsonl.gz",
        gzipped(
            json_lines(
                *(
                    {"id": p, "duration": 1.0, "recording": recording_of(p, "file", p, 1.0)}
                    for p in (LISTED, GONE)
                )
            )
        ),
    ),
    "gigaspeech": (
        "GigaSpeech.json",
        json.dumps(
            {
                "audios": [
                    {
                        "aid": p,
                        "path": p,
                        "segments": [{"sid": p, "begin_time": 0, "end_time": 1, "text_tn": "A"}],
                    }
                    for p in (LISTED, GONE)
                ]
            }
        ),
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_what_a_list_names_and_is_not_there_has_a_row_that_says_so(
    tmp_path: Path, name: str
) -> None:
    path, content = LISTS[name]
    root = write(tmp_path, {path: content, LISTED: AUDIO})
    there, gone = listed(name.split()[0], root)
    assert (there.leaf.path, there.leaf.problem) == (LISTED, "")
    assert (gone.leaf.path, gone.leaf.problem) == (GONE, "is listed, and not below the root")


def test_a_member_that_shar_names_and_is_not_there_has_one_too(tmp_path: Path) -> None:
    cut = {"id": "c", "duration": 1.0, "recording": recording_of("r", "shar", "", 1.0)}
    write(tmp_path, {"x/cuts.000000.jsonl.gz": gzipped(json_lines(cut))})
    (gone,) = listed("lhotse", tmp_path)
    assert (gone.id, gone.leaf.path, bool(gone.leaf.problem)) == ("c", "x/c", True)


@pytest.mark.parametrize(
    ("adapter", "name", "content", "problem"),
    [
        ("manifest", "manifest.csv", b"path,lang\na\xe9.wav,en\n", "is no UTF-8; save it as such"),
        ("manifest", "manifest.csv", b"path,lang\n" + b"x" * 200_000, "field larger than"),
        ("manifest", "manifest.parquet", b"PAR1", "fetch it again"),
        ("lhotse", "cuts.jsonl.gz", b"{}", "Not a gzipped file"),
        ("lhotse", "cuts.jsonl.gz", gzipped("x" * 100)[:-9], "ended before"),
        ("lhotse", "cuts.jsonl.gz", gzipped("x" * 100)[:10] + b"\xff" * 90, "fetch it again"),
    ],
)
def test_a_list_that_is_damaged_is_named(
    tmp_path: Path, adapter: str, name: str, content: bytes, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"{name}: .*{problem}"):
        listed(adapter, write(tmp_path, {name: content}))
