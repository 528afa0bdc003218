"""Units of whole recordings: those of each alone, and errors by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jobs.speech.lloyd import nearest
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.units import deduplicated
from jobs.speech.whole_files import Spoken, WholeFiles, read_table, table_bytes
from orchestrator.errors import DataError
from tests.encoders import small_encoder, speechlike

LAYER = 2
SECONDS = (0.7, 1.9, 0.3, 1.1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeechEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    small_encoder("hubert base").save_pretrained(folder)
    return SpeechEncoder.load(folder, LAYER)


@pytest.fixture(scope="module")
def codebooks(encoder: SpeechEncoder) -> list[torch.Tensor]:
    """Frames of another wave, so that units are of use."""
    (feats_TD,) = encoder.features(speechlike(3.0, seed=7))
    return [feats_TD[::9], feats_TD[::5]]


def written(folder: Path, *seconds: float) -> list[Path]:
    paths = []
    for number, wav_S in enumerate(speechlike(*seconds)):
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], wav_S, 16_000, subtype="FLOAT")
    return paths


@pytest.mark.parametrize("dedup", [True, False])
def test_units_are_those_of_each_file_alone(
    tmp_path: Path, encoder: SpeechEncoder, codebooks: list[torch.Tensor], dedup: bool
) -> None:
    paths = written(tmp_path, *SECONDS)
    heard = WholeFiles(encoder, codebooks, dedup=dedup)(paths)
    assert [file.num_samples for file in heard] == [int(s * 16_000) for s in SECONDS]
    for wav_S, file in zip(speechlike(*SECONDS), heard, strict=True):
        (feats_TD,) = encoder.features([wav_S])
        for centroids_KD, units_L in zip(codebooks, file.units, strict=True):
            alone = nearest(feats_TD, centroids_KD).index_N.numpy().astype(np.uint16)
            expected = deduplicated(alone)[0] if dedup else alone
            assert units_L.tolist() == expected.tolist()
    assert len({u for file in heard for u in file.units[0].tolist()}) > 3, "units are of use"


def test_what_gives_no_units_is_an_error_by_name(
    tmp_path: Path, encoder: SpeechEncoder, codebooks: list[torch.Tensor]
) -> None:
    paths = written(tmp_path, 0.5, 0.01)
    with pytest.raises(DataError, match=r"1\.wav: is too short for a frame"):
        WholeFiles(encoder, codebooks, dedup=True)(paths)
    paths[0].write_bytes(b"RIFF, but not a recording")
    with pytest.raises(DataError, match=r"0\.wav: .*repair the file"):
        WholeFiles(encoder, codebooks, dedup=True)(paths)


def test_a_table_gives_back_what_was_written() -> None:
    spoken = [
        Spoken("dev/a", np.array([3, 0, 3], np.uint16), 16_000),
        Spoken("dev/b", np.array([499], np.uint16), 640),
    ]
    data = table_bytes(spoken)
    assert data == table_bytes(iter(spoken))
    found = list(read_table(data))
    assert [(s.id, s.units_L.tolist(), s.num_samples) for s in found] == [
        ("dev/a", [3, 0, 3], 16_000),
        ("dev/b", [499], 640),
    ]
