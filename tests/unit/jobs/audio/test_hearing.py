from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from jobs.audio.decode import BLOCK_S
from jobs.audio.hearing import Listener
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import VoiceActivity

BLOCK = BLOCK_S * SAMPLE_RATE_HZ
RULE = VoiceActivity(pad_s=0.0)


class Loud:
    """Hears speech in seconds whose first sample is loud, two seconds behind."""

    frame_s = 1.0

    def probabilities(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        late: list[np.ndarray] = []
        for wav_S in blocks:
            late.append(wav_S[::SAMPLE_RATE_HZ])
            if len(late) > 1:
                yield late.pop(0)
        yield from late


class Named:
    """Knows the language by the last sample of a window; remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def probabilities(self, windows: Sequence[np.ndarray]) -> list[Mapping[str, float]]:
        self.heard += [round(float(wav_S[-1]), 3) for wav_S in windows]
        return [{"en": 0.75, "fr": 0.25} for _ in windows]


def block(number: int, *speech_at: int) -> np.ndarray:
    """Thirty seconds with speech in some of them; the last sample is the block's number."""
    wav_S = np.zeros(BLOCK, np.float32)
    for second in speech_at:
        wav_S[second * SAMPLE_RATE_HZ : (second + 1) * SAMPLE_RATE_HZ] = 1.0
    wav_S[-1] = number / 1000
    return wav_S


BLOCKS = [
    block(0),
    block(1, *range(10)),
    block(2, 3),
    block(3, *range(20, 30)),
    block(4, *range(8)),
    block(5, *range(9))[: 10 * SAMPLE_RATE_HZ],
]


def test_stretches_and_blocks_for_the_language_come_of_one_pass() -> None:
    model = Named()
    listener = Listener(detector=Loud(), rule=RULE, language_id=model, languages=["fr"])
    heard = listener.hear(BLOCKS, identifies=True)
    assert heard.num_samples == 5 * BLOCK + 10 * SAMPLE_RATE_HZ
    assert heard.stretches == ((30, 40), (63, 64), (110, 128), (150, 159))
    assert model.heard == [0.001, 0.004, 0.0]  # the last block was cut before its last sample
    assert heard.identified == ("en", 0.75, 0.25)


@pytest.mark.parametrize(
    "spans_s",
    [
        [(60.0, 64.0), (110.0, 117.0), (121.0, 122.0)],
        [(105.0, 117.0), (106.0, 107.0), (60.0, 64.0)],
    ],
)
def test_only_speech_within_the_spans_is_heard_for_the_language(
    spans_s: list[tuple[float, float]],
) -> None:
    model = Named()
    listener = Listener(detector=Loud(), rule=RULE, language_id=model)
    listener.hear(BLOCKS, spans_s, identifies=True)
    assert model.heard == [0.003]


@pytest.mark.parametrize("identifies", [True, False])
def test_a_language_is_told_only_where_it_is_asked_for(identifies: bool) -> None:
    model = Named()
    listener = Listener(detector=Loud(), rule=RULE, language_id=model)
    heard = listener.hear(BLOCKS, identifies=identifies)
    assert (heard.identified is not None) == identifies == bool(model.heard)
    silent = listener.hear([block(0)], identifies=identifies)
    assert silent.stretches == ()
    assert silent.identified is None


def test_stretches_of_a_file_are_heard_in_one_pass_as_if_each_were_alone() -> None:
    asked: list[Sequence[tuple[float, float]] | None] = [
        [(30.0, 31.5)],
        None,
        [(32.0, 40.0)],
        (),
        [(120.0, 130.0), (33.0, 60.0)],
        [(500.0, 501.0)],
        [(5.0, 20.0)],
    ]
    model = Named()
    listener = Listener(detector=Loud(), rule=RULE, language_id=model, languages=["fr"])
    together = listener.hear_each(iter(BLOCKS), asked)
    # The first two are in one block, which is heard once.
    assert model.heard == [0.001, *(0.001, 0.004), *(0.001, 0.004, 0.0)]
    assert together == [
        listener.hear(BLOCKS, spans_s or (), identifies=spans_s is not None) for spans_s in asked
    ]
    assert [heard.identified is None for heard in together] == [
        *(False, True, False, False, False, True, True)
    ]


def test_the_digest_is_that_of_the_samples_however_they_come() -> None:
    whole = np.concatenate(BLOCKS)
    plain = Listener().hear([whole], identifies=False)
    assert plain == Listener().hear(BLOCKS, identifies=False)
    assert plain.stretches == ()
    listened = Listener(detector=Loud(), rule=RULE).hear(BLOCKS, identifies=False)
    assert listened.digest == plain.digest
    assert Listener().hear([whole[1:]], identifies=False).digest != plain.digest


@pytest.mark.parametrize("speech_at", [(), range(30)])
def test_memory_is_bounded_by_some_blocks(speech_at: Sequence[int]) -> None:
    listener = Listener(detector=Loud(), rule=RULE, language_id=Named(), num_windows=2)
    tracemalloc.start()
    every_block = [((30.0 * n, 30.0 * n + 30), (0.0, 1.0)) for n in range(60)]
    listener.hear_each((block(n, *speech_at) for n in range(60)), [(), *every_block])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 4 * BLOCK
