from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from jobs.audio.decode import BLOCK_S, Notice, UnreadableAudioError, blocks, decode, lowpass
from jobs.audio.place import Place
from orchestrator.errors import BackendError, Cause
from orchestrator.quantities import SAMPLE_RATE_HZ


def tone(frequency_hz: float, seconds: float, rate_hz: int) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz) / 2


def loudest_hz(wav_S: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wav_S)).argmax() * SAMPLE_RATE_HZ / len(wav_S))


def level(wav_S: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wav_S[1000:-1000]))))


def write_g722(path: Path, wav_S: np.ndarray) -> None:
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=SAMPLE_RATE_HZ, layout="mono")
        pcm = (wav_S * 32_767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.rate, frame.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize(
    ("suffix", "rate_hz"), [("wav", 44_100), ("flac", 8_000), ("mp3", 11_025), ("ogg", 48_000)]
)
def test_formats_and_rates_become_mono_at_16_khz(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = tmp_path / f"a.{suffix}"
    mono = tone(500, 2.0, rate_hz)
    soundfile.write(path, np.stack([mono, mono], axis=1), rate_hz)
    wav_S = decode(path)
    assert wav_S.dtype == np.float32
    assert wav_S.ndim == 1
    assert len(wav_S) == pytest.approx(2 * SAMPLE_RATE_HZ, rel=0.05)  # MP3 pads
    assert loudest_hz(wav_S) == pytest.approx(500, abs=1)
    assert level(wav_S) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_raw_g722_is_read_by_its_name(tmp_path: Path) -> None:
    write_g722(tmp_path / "a.g722", tone(1000, 1.0, SAMPLE_RATE_HZ))
    wav_S = decode(tmp_path / "a.g722")
    assert len(wav_S) == SAMPLE_RATE_HZ
    assert loudest_hz(wav_S) == pytest.approx(1000, abs=2)
    assert level(wav_S) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_lowpass_takes_what_is_above_and_leaves_what_is_below() -> None:
    below, above = (tone(f, 1.0, SAMPLE_RATE_HZ).astype(np.float32) for f in (1000, 7000))
    kept = lowpass(below + above, 5500)
    assert len(kept) == len(below)
    assert np.abs(kept - below)[1000:-1000].max() < 1e-3  # same phase, so no delay either


def test_lowpass_keeps_the_length_of_a_wave_shorter_than_its_kernel() -> None:
    assert len(lowpass(np.ones(40, np.float32), 5500)) == 40


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a"])
def test_garbage_is_unreadable_with_a_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no audio at all" * 20)
    with pytest.raises(
        UnreadableAudioError, match=r"a\.\w+: .+; repair the file or remove it"
    ) as error:
        decode(tmp_path / name)
    assert error.value.reason
    assert str(tmp_path) not in error.value.reason  # a reason must not depend on the cluster


@pytest.mark.parametrize("name", ["empty.g722", "empty.wav"])
def test_nothing_to_hear_is_unreadable(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UnreadableAudioError):
        decode(tmp_path / name)


@pytest.mark.parametrize("suffix", [".wav", ".m4a"])
@pytest.mark.parametrize("target", ["gone", "itself", "folder"])
def test_bytes_that_cannot_be_had_are_no_verdict(tmp_path: Path, suffix: str, target: str) -> None:
    path = tmp_path / f"a{suffix}"
    if target == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if target == "itself" else tmp_path / "gone")
    with pytest.raises(BackendError, match=rf"a{suffix}: .+; see whether") as error:
        decode(path)
    assert error.value.cause == Cause.STORAGE


def test_samples_that_are_no_numbers_are_unreadable(tmp_path: Path) -> None:
    wav_S = np.zeros(16_000)
    wav_S[7] = np.nan
    soundfile.write(tmp_path / "a.wav", wav_S, 16_000, subtype="FLOAT")
    with pytest.raises(UnreadableAudioError, match="no numbers"):
        decode(tmp_path / "a.wav")


@pytest.mark.parametrize("lowpass_hz", [None, 3_000.0])
@pytest.mark.parametrize(
    ("suffix", "rate_hz"),
    [("wav", 16_000), ("flac", 44_100), ("ogg", 22_050), ("mp3", 48_000), ("opus", 48_000)],
)
def test_a_recording_is_entered_at_any_block_with_the_same_bytes(
    tmp_path: Path, suffix: str, rate_hz: int, lowpass_hz: float | None
) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, (int(2.5 * BLOCK_S * rate_hz), 2))
    how = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    with soundfile.SoundFile(path, "w", rate_hz, 2, **how) as file:
        for start in range(0, len(noise), rate_hz):
            file.write(noise[start : start + rate_hz])
    whole = list(blocks(path, lowpass_hz=lowpass_hz))
    assert [len(b) for b in whole[:-1]] == [BLOCK_S * SAMPLE_RATE_HZ] * 2
    for first in (1, 2):
        entered = list(blocks(path, lowpass_hz=lowpass_hz, first=first))
        assert [b.tobytes() for b in entered] == [b.tobytes() for b in whole[first:]]
    assert list(blocks(path, first=9)) == []


def test_blocks_are_resampled_as_the_whole_is(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wav_S = np.random.default_rng(0).normal(0, 0.1, int(1.3 * BLOCK_S * 44_100)).astype(np.float32)
    soundfile.write(path, wav_S, 44_100, subtype="FLOAT")
    whole = torchaudio.functional.resample(torch.from_numpy(wav_S), 44_100, SAMPLE_RATE_HZ).numpy()
    assert np.abs(decode(path) - whole).max() < 1e-5


def in_channels(path: Path, *channels: np.ndarray) -> Path:
    soundfile.write(path, np.stack(channels, axis=1), 8_000, subtype="FLOAT")
    return path


def test_a_block_whose_mix_cancels_itself_is_its_loudest_channel_wherever_one_enters(
    tmp_path: Path,
) -> None:
    left = np.random.default_rng(0).normal(0, 0.1, int(2.5 * BLOCK_S * 8_000))
    sign = np.where(np.arange(len(left)) // (BLOCK_S * 8_000) == 1, -1.1, 1.0)
    path = in_channels(tmp_path / "a.wav", left, sign * left)
    told: list[Notice] = []
    whole = list(blocks(path, on_notice=told.append))
    assert told == [("cancels", 1)]
    for channel in (1, "loudest"):
        loudest = list(blocks(path, channels=channel))  # type: ignore[arg-type]
        assert whole[1].tobytes() == loudest[1].tobytes()
    alone = decode(in_channels(tmp_path / "b.wav", left))[-len(whole[2]) :]
    assert np.abs(whole[2] - alone)[1_000:].max() < 1e-6
    entered = list(blocks(path, first=1, on_notice=told.append))
    assert told == [("cancels", 1)] * 2
    assert [b.tobytes() for b in entered] == [b.tobytes() for b in whole[1:]]


@pytest.mark.parametrize(("name", "expected"), [("a.flac", []), ("a.mp3", [("passed over", 2)])])
def test_what_must_be_decoded_to_get_somewhere_is_told(
    tmp_path: Path, name: str, expected: list[tuple[str, int]]
) -> None:
    soundfile.write(tmp_path / name, tone(500, 2.5 * BLOCK_S, 8_000), 8_000)
    told: list[Notice] = []
    assert len(list(blocks(tmp_path / name, first=2, on_notice=told.append))) == 1
    assert told == expected
    list(blocks(tmp_path / name, on_notice=told.append))
    assert told == expected


def test_a_channel_that_is_not_there_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = in_channels(tmp_path / "a.wav", tone(500, 1.0, 8_000), tone(700, 1.0, 8_000))
    assert loudest_hz(decode(path, channels=1)) == pytest.approx(700, abs=1)
    with pytest.raises(UnreadableAudioError, match="has no channel 2, only 2"):
        decode(path, channels=2)


def test_parts_that_differ_in_their_channels_are_mixed_part_by_part(tmp_path: Path) -> None:
    chained = b""
    for number, channels in enumerate(([1.0], [1.0, 0.0], [1.0])):
        part = tmp_path / f"{number}.ogg"
        mono = tone(500, 2.0, SAMPLE_RATE_HZ)
        soundfile.write(part, np.stack([mono * c for c in channels], axis=1), SAMPLE_RATE_HZ)
        chained += part.read_bytes()
    (tmp_path / "a.ogg").write_bytes(chained)
    wav_S = decode(tmp_path / "a.ogg")
    found = [level(wav_S[2 * n * SAMPLE_RATE_HZ : 2 * (n + 1) * SAMPLE_RATE_HZ]) for n in range(3)]
    assert found == pytest.approx([0.354, 0.177, 0.354], rel=0.05)


def test_a_mix_is_the_mean_of_its_channels_whoever_decodes(tmp_path: Path) -> None:
    mono = tone(500, 1.0, 48_000)
    for suffix in ("flac", "mp3", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", np.stack([mono, 0 * mono], axis=1), 48_000)
        assert level(decode(tmp_path / f"a.{suffix}")) == pytest.approx(0.25 / np.sqrt(2), rel=0.05)


class FailsOnce(Place):
    """A file of which one read fails; whoever tries again finds nothing wrong."""

    def open(self, buffering: int = -1) -> BinaryIO:
        path = Path(str(self.file))
        raw = FailingReads(path, path.with_suffix(".tried"))
        return cast(BinaryIO, io.BufferedReader(raw, min(max(buffering, 512), 4096)))


class FailingReads(io.FileIO):
    """Fails where a third of the file has been read, unless it has done so before."""

    def __init__(self, path: Path, tried: Path) -> None:
        super().__init__(path)
        self._size, self._tried = path.stat().st_size, tried

    def readinto(self, buffer: Any) -> int | None:
        if self.tell() > self._size // 3 and not self._tried.exists():
            self._tried.touch()
            raise OSError(errno.EIO, "Input/output error", str(self.name))
        return super().readinto(buffer)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "g722"])
def test_a_read_that_fails_once_is_no_verdict(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    wav_S = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE_HZ)
    if suffix == "g722":
        write_g722(path, wav_S)
    else:
        soundfile.write(path, wav_S, SAMPLE_RATE_HZ)
    place = FailsOnce(path, path.name)
    with pytest.raises(BackendError, match=rf"a\.{suffix}: Input/output error; see whether"):
        list(blocks(place))
    assert sum(map(len, blocks(place))) >= 5 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_32"])
def test_codecs_that_cannot_be_entered_are_read_all_the_same(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(500, 1.5 * BLOCK_S, 8_000), 8_000, subtype=subtype)
    whole = list(blocks(path))
    assert len(whole) == 2
    assert [b.tobytes() for b in blocks(path, first=1)] == [whole[1].tobytes()]
