"""Windows of recordings, pages of them, and their waves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.audio.corpus_tables import Part
from jobs.audio.decode import UnreadableAudioError
from jobs.audio.roots import Root
from jobs.speech.utterances import (
    SILENT,
    ShardAudio,
    Utterance,
    WaveReader,
    batches,
    pages,
)
from orchestrator.spec.recipe import Windows
from tests.corpora import row_of, write_wave

WINDOWS = Windows(min_s=0.2, max_s=1.0)


def _utterance(start_sample: int, num_samples: int, path: str = "a.wav") -> Utterance:
    return Utterance(f"{path}@{start_sample}", row_of(path), start_sample, num_samples)


def _cut(reader: WaveReader, part: Part, windows: Windows = WINDOWS) -> list[tuple[str, int, int]]:
    found = [window.utterance for window in reader.windows(part, windows)]
    return [(u.id, u.start_sample, u.num_samples) for u in found]


def test_pages_are_runs_within_the_limit() -> None:
    assert list(pages([3, 4, 9, 1, 1], int, max_samples=8)) == [[3, 4], [9], [1, 1]]
    assert list(pages([], int)) == []


def test_batches_give_every_utterance_its_own_samples(tmp_path: Path) -> None:
    waves = {name: write_wave(tmp_path / name, n) for name, n in (("a.wav", 9_000), ("b.wav", 40))}
    utterances = [_utterance(0, 4_500), _utterance(4_500, 4_500), _utterance(0, 40, "b.wav")]
    reader, seen = WaveReader({"s": Root(tmp_path)}), {}
    for positions, batch in batches((reader.read(u) for u in utterances), 16_000):
        seen.update(zip(positions, batch, strict=True))
    np.testing.assert_array_equal(seen[0], waves["a.wav"][:4_500])
    np.testing.assert_array_equal(seen[1], waves["a.wav"][4_500:])
    np.testing.assert_array_equal(seen[2], waves["b.wav"])


def test_neighbours_of_one_recording_are_decoded_once(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 2_000)
    reader = WaveReader({"s": Root(tmp_path)})
    reader.read(_utterance(0, 1_000))
    (tmp_path / "a.wav").unlink()
    assert len(reader.read(_utterance(1_000, 1_000))) == 1_000


def test_the_band_limit_of_the_source_applies(tmp_path: Path) -> None:
    wave = write_wave(tmp_path / "a.wav", 8_000)
    reader = WaveReader({"s": Root(tmp_path, lowpass_hz=1_000)})
    assert reader.read(_utterance(0, 8_000)).std() < 0.5 * wave.std()


def test_a_recording_that_shrank_is_named(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 1_000)
    with pytest.raises(UnreadableAudioError, match=r"a\.wav: ends before sample 1500, which it"):
        WaveReader({"s": Root(tmp_path)}).read(_utterance(500, 1_000))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_parts_of_a_long_recording_are_the_windows_of_all_of_it(tmp_path: Path, name: str) -> None:
    write_wave(tmp_path / name, 95 * 16_000)
    root, windows = {"s": Root(tmp_path)}, Windows(max_s=7.0)
    row = row_of(name, header_samples=95 * 16_000)
    whole = list(WaveReader(root).windows(Part(row, 0, None), windows))
    assert len(whole) == 14
    assert whole[0].utterance.id == f"{name}@0"
    reader = WaveReader(root)
    bounds = [(0, 3), (3, 9), (9, 13), (13, None)]
    parts = [w for first, end in bounds for w in reader.windows(Part(row, first, end), windows)]
    assert [w.utterance for w in parts] == [w.utterance for w in whole]
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one.wav_S, other.wav_S)


def test_what_is_decoded_to_get_into_a_file_is_counted(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 95 * 16_000)
    write_wave(tmp_path / "a.mp3", 95 * 16_000)
    for name, passed_over in (("a.wav", 0), ("a.mp3", 60 * 16_000)):
        reader = WaveReader({"s": Root(tmp_path)})
        last = Part(row_of(name, header_samples=95 * 16_000), 13, None)
        assert len(list(reader.windows(last, Windows(max_s=7.0)))) == 1
        assert reader.passed_over_samples == passed_over
        assert reader.decoded_samples == pytest.approx(passed_over + 35 * 16_000, abs=3_000)


def test_what_is_one_window_has_the_recordings_name(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 16_000)
    reader = WaveReader({"s": Root(tmp_path)})
    assert _cut(reader, Part(row_of("a.wav"), 0, None)) == [("a.wav", 0, 16_000)]
    said = row_of("a.wav")._replace(spans_s=((0.25, 0.75),))
    assert _cut(reader, Part(said, 0, None)) == [("a.wav", 4_000, 8_000)]


def test_a_header_that_lies_changes_no_window(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 3 * 16_000)
    reader = WaveReader({"s": Root(tmp_path)})
    for promised in (0, 100, 3 * 16_000, 10**9):
        row = row_of("a.wav", header_samples=promised)
        found = _cut(reader, Part(row, 0, None))
        assert [start for _, start, _ in found] == [0, 16_000, 32_000]


def _heard(folder: Path, *parts: Part) -> tuple[list[tuple[str, str]], dict[str, str], int]:
    audio = ShardAudio(parts, WINDOWS)
    num_waves = len(list(audio.waves(WaveReader({"s": Root(folder)}))))
    return [(u.id, reason) for u, reason in audio.heard], audio.unreadable, num_waves


def test_a_shard_says_what_it_does_not_use_and_why(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 16_000)
    write_wave(tmp_path / "short.wav", 3_000)
    write_wave(tmp_path / "still.wav", 16_000)
    soundfile.write(tmp_path / "still.wav", np.zeros(32_000), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"no")
    names = ("a.wav", "short.wav", "still.wav", "broken.wav")
    late = row_of("a.wav")._replace(id="late", spans_s=((5.0, 6.0),))
    heard, unreadable, num_waves = _heard(
        tmp_path, *(Part(row_of(name), 0, None) for name in names), Part(late, 0, None)
    )
    assert heard == [
        ("a.wav", ""),
        ("short.wav", "shorter than 0.2 s"),
        ("still.wav@0", SILENT),
        ("still.wav@16000", SILENT),
        ("late", "ends before the speech that its corpus lists"),
    ]
    assert list(unreadable) == ["broken.wav"]
    assert num_waves == 1


def test_of_what_breaks_off_the_windows_before_are_known_as_well(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.flac", 16_000 * 40)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 9 // 10])
    _, unreadable, _ = _heard(tmp_path, Part(row_of("a.flac"), 0, None))
    assert list(unreadable) == ["a.flac"]


@pytest.mark.parametrize(("name", "apart_s"), [("a.mp3", 5), ("a.mp3", 32), ("a.flac", 32)])
def test_stretches_of_one_file_are_taken_from_few_passes(
    tmp_path: Path, name: str, apart_s: int
) -> None:
    wave = write_wave(tmp_path / name, 100 * 16_000)
    whole = row_of(name, header_samples=100 * 16_000)
    rows = [whole._replace(id=f"s/{n}", spans_s=((n, n + 4),)) for n in range(0, 96, apart_s)]
    reader, windows = WaveReader({"s": Root(tmp_path)}), Windows(max_s=7.0)
    found = [w for row in rows for w in reader.windows(Part(row, 0, None), windows)]
    assert [w.utterance.id for w in found] == [row.id for row in rows]
    # From the beginning, and once more where it turns out that nobody can jump.
    assert reader.decoded_samples <= 2.4 * len(wave)
    alone = WaveReader({"s": Root(tmp_path)}).windows(Part(rows[-1], 0, None), windows)
    np.testing.assert_array_equal(next(alone).wav_S, found[-1].wav_S)


@pytest.mark.parametrize("name", ["a.flac"])
def test_what_breaks_off_does_so_for_whoever_goes_on_with_it(tmp_path: Path, name: str) -> None:
    write_wave(tmp_path / name, 95 * 16_000)
    data = bytearray((tmp_path / name).read_bytes())
    at = len(data) * 7 // 10
    data[at : at + 4_000] = bytes(4_000)
    (tmp_path / name).write_bytes(data)
    row, windows = row_of(name, header_samples=95 * 16_000), Windows(max_s=7.0)
    reader = WaveReader({"s": Root(tmp_path)})

    def fate(reader: WaveReader, first: int, end: int | None) -> tuple[list[str], list[str]]:
        audio = ShardAudio([Part(row, first, end)], windows)
        list(audio.waves(reader))
        return [u.id for u, _ in audio.heard], list(audio.unreadable)

    for border in (8, 9, 10):
        for part in ((0, border), (border, None)):
            assert fate(reader, *part) == fate(WaveReader({"s": Root(tmp_path)}), *part)
