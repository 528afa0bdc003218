"""Lists that are wrong in one place: each is refused with that place, and what to do."""

# ruff: noqa: E501 (a row is a list, and what is said of it)

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.audio.lists import NOT_BELOW_ROOT
from orchestrator.errors import OrchestratorError
from tests.unit.jobs.audio.corpora.layouts import (
    AUDIO,
    gzipped,
    json_lines,
    listed,
    listed_in_tars,
    write,
)

EVENTS = "event_id\tsegment_no\tstart\tend\n"
EVENT = "20090914-0900-PLENARY-3_en"
CHAPTER = "small/960/a_book/one_64kb"


def chapter(**facts: Any) -> Mapping[str, bytes | str]:
    about = {"speaker": "960", "voice_activity": [[0.4, 12.32]], **facts}
    return {f"{CHAPTER}.flac": AUDIO, f"{CHAPTER}.json": json.dumps(about)}


def giga(**segment: Any) -> str:
    about = {"sid": "P_S0", "begin_time": 1.5, "end_time": 4, "text_tn": "A", **segment}
    return json.dumps({"audios": [{"aid": "P", "path": "a.opus", "segments": [about]}]})


def cut(**about: Any) -> str:
    sources = [{"type": "file", "channels": [0], "source": "a.wav"}]
    recording = {"id": "r", "sources": sources, "duration": 9.0}
    whole = {"id": "c", "start": 0, "duration": 9.0, "type": "MonoCut", "recording": recording}
    return json_lines({**whole, **about})


def source(**about: Any) -> dict[str, Any]:
    return {"recording": {"id": "r", "sources": [{"type": "file", "source": "a.wav", **about}]}}


def voxpopuli(line: str) -> Mapping[str, bytes | str]:
    return {
        f"raw_audios/en/2009/{EVENT}.ogg": AUDIO,
        "annotations/unlabelled_v2.tsv.gz": gzipped(f"{EVENTS}{line}\n"),
    }


def kaldi(**tables: str) -> Mapping[str, bytes | str]:
    return {
        "a.wav": AUDIO,
        "wav.scp": "r a.wav\n",
        **{k.replace("_", "."): v for k, v in tables.items()},
    }


VOX = "unlabelled_v2.tsv.gz: line 2"
WRONG: list[tuple[str, Mapping[str, bytes | str], str]] = [
    ("voxpopuli", voxpopuli(f"{EVENT}\t0\tx\t9"), f"{VOX}: start 'x' is no time in seconds; repair"),
    ("voxpopuli", voxpopuli(f"{EVENT}\t0\t0.5\t"), f"{VOX}: end '' is no time in seconds; repair"),
    ("voxpopuli", voxpopuli(f"{EVENT}\t0\t0,5\t9"), f"{VOX}: start '0,5' is no time"),
    ("voxpopuli", voxpopuli(f"{EVENT}\t0\t0.5"), f"{VOX}: has 3 columns, and the header 4"),
    ("libri_light", chapter(voice_activity=[[0.4, "x"]]), f"{CHAPTER}.json: end 'x' is no time"),
    ("libri_light", chapter(voice_activity=[0.4, 1]), f"{CHAPTER}.json: 0.4 is no pair of times"),
    ("libri_light", chapter(voice_activity={}), f"{CHAPTER}.json: 'voice_activity' is no list"),
    ("libri_light", chapter(voice_activity=[[1, None]]), f"{CHAPTER}.json: end None is no time"),
    ("libri_light", chapter(speaker=None), f"{CHAPTER}.json: has no 'speaker'; repair it"),
    ("gigaspeech", {"GigaSpeech.json": giga(begin_time="x")},
     "audios[0]: P_S0: begin_time 'x' is no time in seconds; repair it"),
    ("gigaspeech", {"GigaSpeech.json": giga(end_time=None)}, "P_S0: has no 'end_time'; repair it"),
    ("gigaspeech", {"GigaSpeech.json": giga(end_time=[])}, "P_S0: end_time [] is no time"),
    ("gigaspeech", {"GigaSpeech.json": giga(sid=None)}, "audios[0]: has no 'sid'; repair it"),
    ("gigaspeech", {"GigaSpeech.json": '{"audios": ["x"]}'}, "audios[0]: has no 'path'; repair it"),
    ("gigaspeech", {"GigaSpeech.json": '{"audios": [{"aid": "P", "path": "a", "segments": 1}]}'},
     "audios[0]: 'segments' is no list"),
    ("gigaspeech", {"GigaSpeech.json": '{"audios": [{"path": "a", "segments": []}]}'},
     "audios[0]: has no 'aid'"),
    ("gigaspeech", {"GigaSpeech.json": '{"audios": ['}, "GigaSpeech.json: is no JSON"),
    ("kaldi", {"x": ""}, "has no wav.scp; it is no Kaldi data folder"),
    ("kaldi", kaldi(wav_scp="r a.wav\nr b.wav\n"), "wav.scp: line 2: r is also in wav.scp: line 1"),
    ("kaldi", kaldi(wav_scp="r\n"), "wav.scp: line 1: r is alone; repair it"),
    ("kaldi", kaldi(wav_scp="r /mnt/x/a.wav\n"), "a.wav is: write paths from there"),
    ("kaldi", kaldi(wav_scp="r x.ark:17\n"), "x.ark:17 lies in an archive of Kaldi's; write it as"),
    ("kaldi", kaldi(wav_scp="r sox a.wav -t wav - |\n"), "is a command for a shell"),
    ("kaldi", kaldi(segments="u q 0 1\n"), "segments: line 1: q is not in wav.scp; add it there"),
    ("kaldi", kaldi(segments="u r 0 x\n"), "segments: line 1: time 'x' is no time in seconds"),
    ("kaldi", kaldi(segments="u r 0\n"), "segments: line 1: 'r 0': no recording, start and end"),
    ("kaldi", kaldi(segments="u r 0 1\nu r 1 2\n"), "line 2: u is also in segments: line 1"),
    ("kaldi", kaldi(utt2spk="r a\nr b\n"), "utt2spk: line 2: r is also in utt2spk: line 1; keep one"),
    ("lhotse", {"a.wav": AUDIO}, "has no cuts*.jsonl.gz and no recordings*.jsonl.gz"),
    ("lhotse", {"cuts.jsonl": cut(start="x")}, "cuts.jsonl: line 1: start 'x' is no time"),
    ("lhotse", {"cuts.jsonl": cut(duration=None)}, "cuts.jsonl: line 1: has no 'duration'"),
    ("lhotse", {"cuts.jsonl": cut(recording=None, features={})}, "a cut with features alone; save"),
    ("lhotse", {"cuts.jsonl": cut(recording=None, type="MixedCut", tracks=[])},
     "line 1: a cut with MixedCut of no one recording; save cuts that each have a recording"),
    ("lhotse", {"cuts.jsonl": cut(supervisions={"a": 1})}, "line 1: 'supervisions' is no list"),
    ("lhotse", {"cuts.jsonl": cut(**source(type="command"))}, "its recording is a command; save it"),
    ("lhotse", {"cuts.jsonl": cut(**source(type="memory"))}, "its recording is a memory; save it as"),
    ("lhotse", {"cuts.jsonl": cut(**source(source="/mnt/x/a.wav"))}, "/mnt/x/a.wav is not below"),
    ("lhotse", {"cuts.jsonl": cut(recording={"transforms": [{"name": "Speed"}], "sources": [1]})},
     "line 1: its recording is changed by transforms; save it as audio"),
    ("lhotse", {"cuts.jsonl": cut(recording={"id": "r"})}, "line 1: has no 'sources'; repair it"),
    ("lhotse", {"cuts.jsonl": cut(recording={"sources": [1]})}, "line 1: has no 'type'; repair it"),
    ("lhotse", {"cuts.jsonl": "[" + cut() + "]"}, "line 1: is no JSON"),
    ("manifest", {"manifest.json": "[\n" + cut() + "]"}, "write one object a line"),
    ("manifest", {"manifest.csv": "path;lang\na.wav;en\n"}, "its columns are path;lang"),
    ("manifest", {"manifest.csv": "file,lang\na.wav,en\n"}, "line 2: has a path in none of audio_"),
    ("manifest", {"manifest.csv": "path,offset\na.wav,x\n"}, "line 2: offset 'x' is no time in"),
    ("manifest", {"manifest.csv": "path,duration\na.wav,3 s\n"}, "line 2: duration '3 s' is no time"),
    ("manifest", {"manifest.csv": "path,channel\na.wav,left\n"}, "line 2: channel 'left'; channels"),
    ("manifest", {"manifest.csv": "path,text,speaker\na.wav,well, well,bob\n"}, "line 2: has 4"),
    ("manifest", {"manifest.csv": 'path,text\na.wav,"well\n'}, "repair its quotes"),
    ("manifest", {"manifest.jsonl": '{"path": "a.wav", "offset": [1]}'}, "offset [1] is no time"),
    ("manifest", {"manifest.jsonl": '{"path": "a.wav", "channel": [1]}'}, "channel [1]; channels"),
    ("manifest", {"manifest.jsonl": '{"audio": {"bytes": ""}}'}, "line 1: has a path in none of"),
    ("manifest", {"manifest.jsonl": '{"path": "/mnt/x/a.wav"}'}, "a.wav is: write paths from there"),
    ("manifest", {"manifest.jsonl": '{"path": "a.wav", "segments": [{"start": 1}]}'},
     "line 1: segments[0]: has no 'end'; repair it"),
    ("manifest", {"manifest.jsonl": '{"path": "a.wav", "segments": {"start": 1}}'}, "is no list"),
    ("manifest", {"manifest.csv": "", "manifest.jsonl.gz": b""}, "and has manifest.csv, manifest.jso"),
    ("fairseq_tsv", {"a.wav": AUDIO}, "has no .tsv at its top; put the manifests there"),
    ("fairseq_tsv", {"t.tsv": "a.wav\t16000\n"}, "t.tsv: line 1: no root: the first line is a folder"),
    ("fairseq_tsv", {"t.tsv": "/x\na.wav\tmany\n"}, "t.tsv: line 2: no path and number of samples"),
    ("fairseq_tsv", {"t.tsv": "/x\na.wav 16000\n"}, "t.tsv: line 2: no path and number of samples"),
    ("spotify", {"metadata.tsv": "show_filename_prefix\tlanguage\n"}, "has no column episode_file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "files", "problem"), WRONG, ids=[f"{a}: {p}" for a, _, p in WRONG]
)
def test_a_list_that_is_wrong_says_where_and_what_to_do(
    tmp_path: Path, adapter: str, files: Mapping[str, bytes | str], problem: str
) -> None:
    beside = {} if adapter == "libri_light" else {"a.wav": AUDIO}
    with pytest.raises(OrchestratorError) as error:
        listed(adapter, write(tmp_path, {**beside, **files}))
    message = str(error.value)
    assert problem in message
    assert "\n" not in message


RIGHT: list[tuple[str, Mapping[str, bytes | str], list[tuple[object, ...]]]] = [
    ("kaldi", kaldi(wav_scp="r\ta.wav\n", utt2spk="r\tbob\n", utt2lang="r\teng\n"),
     [("r", (), "en", "bob", None)]),
    ("kaldi", kaldi(segments="u\tr\t0.5  1\n", utt2spk="u  bob\n", utt2lang="u \tdeu\n"),
     [("u", ((0.5, 1.0),), "de", "bob", None)]),
    ("kaldi", kaldi(segments="\ufeffu r 0.5 1 1\r\n"), [("u", ((0.5, 1.0),), "", "", 1)]),
    ("kaldi", kaldi(segments=""), []),
    ("manifest", {"manifest.csv": "\ufeffPath, Lang\r\na.wav, eng\r\n"}, [("a", (), "en", "", None)]),
    ("manifest", {"manifest.jsonl.gz": gzipped('\ufeff{"path": "a.wav", "lang": "en_GB"}\r\n')},
     [("a", (), "en", "", None)]),
    ("manifest", {"manifest.csv.gz": gzipped('path,text\n"a.wav","well, well"\n')},
     [("a", (), "", "", None)]),
    ("manifest", {"manifest.csv": "path,offset,duration\na.wav,0,1\na.wav,1,1\n"},
     [("a", ((0.0, 1.0),), "", "", None), ("a@1", ((1.0, 2.0),), "", "", None)]),
    ("manifest", {"manifest.jsonl": '{"path": "a.wav", "speaker": NaN, "lang": NaN}'},
     [("a", (), "", "", None)]),
    ("manifest", {"manifest.jsonl": json_lines(
        {"id": "m", "audio_filepath": "a.wav", "language": "en", "duration": 9, "segments": [
            {"speaker": "s0", "start": 0, "end": 2.5, "text": "a", "words": []},
            {"speaker": "s1", "start": 2, "end": 4, "text": "b"}, {"start": 5, "end": 6}]},
        {"audio_filepath": "b.wav", "speaker": "ana", "segments": [{"start": 1.5, "end": 2}]},
     ), "b.wav": AUDIO},
     [("m/00000", ((0.0, 2.5),), "en", "s0", None), ("m/00001", ((2.0, 4.0),), "en", "s1", None),
      ("m/00002", ((5.0, 6.0),), "en", "", None), ("b/00000", ((1.5, 2.0),), "", "ana", None)]),
    ("fairseq_tsv", {"t.tsv": "\ufeff/x\r\na.wav\t16000\r\na.mp3\t9\r\n", "a.mp3": AUDIO},
     [("a.wav", (), "", ".", None), ("a.mp3", (), "", ".", None)]),
    ("gigaspeech", {"GigaSpeech.json": "\ufeff" + giga(), "a.opus": AUDIO},
     [("P_S0", ((1.5, 4.0),), "en", "", None)]),
]  # fmt: skip


@pytest.mark.parametrize(("adapter", "files", "expected"), RIGHT, ids=[str(r[1]) for r in RIGHT])
def test_a_list_as_other_programs_write_it_is_read(
    tmp_path: Path,
    adapter: str,
    files: Mapping[str, bytes | str],
    expected: list[tuple[object, ...]],
) -> None:
    found = listed(adapter, write(tmp_path, {"a.wav": AUDIO, **files}))
    assert [(r.id, r.spans_s, r.language, r.speaker, r.channel) for r in found] == expected


def test_segments_of_one_file_are_one_session_and_a_file_without_any_has_no_speech(
    tmp_path: Path,
) -> None:
    segments = [{"start": 0, "end": 1}, {"start": 1, "end": 2}]
    rows = [
        {"path": "a.wav", "segments": segments},
        {"path": "b.wav", "session": "s", "segments": segments},
        {"path": "c.wav", "segments": []},
    ]
    files = {"manifest.jsonl": json_lines(*rows), **dict.fromkeys(["a.wav", "b.wav"], AUDIO)}
    found = listed("manifest", write(tmp_path, files))
    assert [(r.session, r.left_out) for r in found] == [
        *[("a", "")] * 2,
        *[("s", "")] * 2,
        ("", "no speech"),
    ]


def test_a_chapter_of_which_only_the_json_is_there_is_not_forgotten(tmp_path: Path) -> None:
    files = {**chapter(), "small/1/b/gone_64kb.json": "{}", "about.json": "{}"}
    found = {r.id: r.leaf.problem for r in listed("libri_light", write(tmp_path, files))}
    assert found == {CHAPTER: "", "small/1/b/gone_64kb": NOT_BELOW_ROOT}


def test_a_sample_of_which_only_the_json_is_there_is_not_forgotten(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a.mp3": AUDIO, "b.json": '{"language": "de"}', "c.txt": ""})
    write(tmp_path / "tars", {"stats.json": "{}"})
    with tarfile.open(tmp_path / "tars/x.tar", "w") as tar_of:
        for member in sorted(folder.iterdir()):
            tar_of.add(member, member.name)
    found = listed_in_tars("webdataset", tmp_path / "tars")
    assert [(r.id, r.language, r.leaf.problem) for r in found] == [
        ("a", "", ""),
        ("b", "de", "has a .json in its tar, and no audio"),
    ]


def test_keys_that_several_tars_have_are_told_apart(tmp_path: Path) -> None:
    """Tars that count from 0 on each unpack into one folder."""
    for name in ("x", "y"):
        write(tmp_path / name, {"000000.mp3": AUDIO, f"{name}.mp3": AUDIO})
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as tar_of:
            for member in sorted((tmp_path / name).iterdir()):
                tar_of.add(member, member.name)
    found = [r.id for r in listed_in_tars("webdataset", tmp_path / "tars")]
    assert sorted(found) == ["x", "x.tar/000000", "y", "y.tar/000000"]


def test_the_unsupervised_peoples_speech_is_in_the_languages_that_were_told(
    tmp_path: Path,
) -> None:
    """Not all in English, and not all of one speaker."""
    names = ("audio/one.mp3", "audio/two.mp3", "audio/three.mp3")
    write(tmp_path / "a", dict.fromkeys(names, AUDIO))
    (tmp_path / "root/audio").mkdir(parents=True)
    with tarfile.open(tmp_path / "root/audio/000001.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / "a" / name, Path(name).name)
    before = {r.id: r.language for r in listed_in_tars("peoples_speech", tmp_path / "root")}
    assert set(before.values()) == {""}
    said = json_lines(
        {"tar_number": "000001", "filepath": "one.mp3", "prediction": "en"},
        {"tar_number": 1, "filepath": "x/two.mp3", "prediction": "deu"},
        {"tar_number": 2, "filepath": "three.mp3", "prediction": "en"},
    )
    root = write(tmp_path / "root", {"lang_id_results.jsonl": said})
    found = listed_in_tars("peoples_speech", root)
    languages = {"audio/one": "en", "audio/two": "de", "audio/three": ""}
    assert {r.id: r.language for r in found} == languages
    assert {(r.speaker, r.session) for r in found} == {("", "")}
