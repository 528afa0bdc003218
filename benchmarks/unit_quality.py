"""Says how much of what is spoken the units keep: PNMI and purities against exact phone times.

In: an encoder, the speech k-means is fitted on, and test speech with phone times. The test speech
comes from Festival, whose voices state when each phone ends: real phone times without a forced
aligner, at the price of synthetic voices. The measures are those of HuBERT (arXiv 2106.07447,
section IV-C). Out: a table of the encoder's layers beside MFCC at the same number of clusters.
Pauses are not scored: they are digital silence, which any features tell apart.

    python -m benchmarks.unit_quality --encoder recipes/assets/hubert-demo
        --train material/speech --lowpass-hz 5500

Shapes: T frames, D features, K clusters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import HubertModel

from jobs.audio.alignments import Phone, lab
from jobs.audio.decode import UnreadableAudioError, Wave, decode
from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root
from jobs.audio.trees import Leaf
from jobs.scoring.unit_quality import Quality, labels_at, quality
from jobs.speech import targets
from jobs.speech.grid import Grid, grid_of
from jobs.speech.lloyd import BlocksInMemory, fit, nearest
from orchestrator.errors import BackendError, OrchestratorError, RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Corpus, Source

VOICES = ("kal_diphone", "ked_diphone")
Floats = npt.NDArray[np.float32]

SENTENCES = (
    "The ferry left the harbour before anyone had finished breakfast.",
    "She measured the garden twice and still bought too much fence.",
    "A thin yellow dog waited under the bridge for the rain to stop.",
    "Our teacher drew a huge purple whale on the classroom window.",
    "Nobody could remember who had switched off the kitchen light.",
    "The judge asked the young boy to point at the missing coin.",
    "Put the heavy boxes down gently beside the garage door.",
    "Fresh bread and sharp cheese make a good lunch in the mountains.",
    "He thought the measure was unusual, yet he voted for it.",
    "Three brothers shared one bicycle through the whole winter.",
    "The engine coughed, shook violently, and finally went quiet.",
    "I would rather walk home than wait another hour for the bus.",
    "Cold water rushed over the rocks and into the narrow valley.",
    "Their cousin joined the choir because she enjoyed loud music.",
    "The museum keeps a golden watch that belonged to a sailor.",
    "Please choose a chair and watch the children juggle oranges.",
    "My uncle grows cherries, plums, and very sour green apples.",
    "The old map showed a path through the marsh to the south.",
    "We usually close the shop at five, except on Thursdays.",
    "Both of these letters were found behind the broken mirror.",
    "Which of the four visitors forgot the blue umbrella?",
    "The doctor said that fresh air would cure most of his trouble.",
    "A large cloud of smoke rose slowly over the village church.",
    "They hung wet clothes on a rope between two crooked trees.",
    "Everything in the drawer was covered with fine white dust.",
    "The pilot had to choose between the beach and the highway.",
    "Look how the moon shines on the roof of the old mill.",
    "She laughed, took a deep breath, and jumped into the pool.",
    "Beige is a poor colour for a jacket you wear in the mud.",
    "The king gave each of his knights a horse and a silver cup.",
    "You should have heard the noise when the shelf came down.",
    "In the north the days are short and the evenings are cozy.",
    "The thief hid the pearls inside a loaf of stale bread.",
    "Would you care for another cup of tea with honey?",
    "Six foxes crossed the frozen pond without making a sound.",
    "The author signed every book with the same green pencil.",
    "It takes courage to admire an idea that proves you wrong.",
    "A good carpenter checks the angle before cutting the board.",
    "The children buried their treasure near the fourth oak.",
    "Every morning the baker sweeps the step and feeds the birds.",
)


class Spoken(NamedTuple):
    """Test speech with the phone that is being said at any time."""

    wav_S: Wave
    phones: Sequence[Phone]


class Scored(NamedTuple):
    """One row of the table."""

    features: str
    num_clusters: int
    quality: Quality


def compare(
    model: HubertModel,
    train: Sequence[Wave],
    test: Sequence[Spoken],
    num_clusters: Sequence[int],
    layers: Sequence[int],
    seed: int = 0,
) -> list[Scored]:
    """Scores of the layers and of MFCC (raw and standardised).

    k-means is fitted on the training speech, as it is for the tokenizer.
    """
    grid = grid_of(model.config.conv_kernel, model.config.conv_stride)
    labels = [
        label
        for spoken in test
        for label in labels_at(spoken.phones, grid, grid.num_frames(len(spoken.wav_S)))
    ]
    rows = []
    for name, features in _contenders(model, grid, train, layers):
        train_feats = BlocksInMemory([torch.from_numpy(features(wav_S)) for wav_S in train])
        test_TD = torch.from_numpy(np.concatenate([features(s.wav_S) for s in test]))
        for k in num_clusters:
            units_T = nearest(test_TD, fit(train_feats, k, seed).centroids)[0].numpy()
            rows.append(Scored(name, k, quality(labels, units_T)))
    return rows


def speak(into: Path, voices: Sequence[str] = VOICES, sentences: Sequence[str] = SENTENCES) -> None:
    """Let Festival say every sentence in every voice: ``<voice>-<n>.wav`` and ``<voice>-<n>.lab``.

    Raises BackendError when Festival or a voice is missing.
    """
    into.mkdir(parents=True, exist_ok=True)
    lines = [command for voice in voices for command in _scheme(into.resolve(), voice, sentences)]
    script = into / "speak.scm"
    script.write_text("\n".join(lines) + "\n")
    try:
        done = subprocess.run(
            ["festival", "-b", str(script)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BackendError(
            "festival: not on this machine; install festival and festvox-kallpc16k"
        ) from None
    if done.returncode or len(list(into.glob("*.lab"))) < len(voices) * len(sentences):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(
            f"festival: cannot speak ({last}); "
            f"check that the voices {', '.join(voices)} are installed"
        )


def load_spoken(folder: Path, lowpass_hz: float | None) -> list[Spoken]:
    """Every ``.wav`` beside a ``.lab`` (xwaves' format: end in seconds, colour, phone)."""
    found = [
        Spoken(
            decode(marks.with_suffix(".wav"), lowpass_hz=lowpass_hz),
            lab(marks.read_text(), str(marks)),
        )
        for marks in sorted(folder.glob("*.lab"))
    ]
    if not found:
        raise RequestError(
            f"{folder}: holds no .wav with a .lab beside it; give a folder with phone times"
        )
    return found


def load_train(root: Path, hours: float, lowpass_hz: float | None) -> list[Wave]:
    """Recordings below the root by the hash of their names, up to ``hours``; no unreadable ones."""
    found, budget = [], hours * 3600 * SAMPLE_RATE_HZ
    source, tree = Source(name="train", language="en"), Root(root).tree()
    wanted = list_corpus(Corpus(sources=(source,)), {source.name: Root(root)}).wanted.to_pylist()
    for row in sorted(wanted, key=lambda row: hashlib.sha256(row["id"].encode()).digest()):
        try:
            wav_S = decode(tree.place(Leaf(row["path"], row["size"])), lowpass_hz=lowpass_hz)
        except UnreadableAudioError:
            continue
        found.append(wav_S)
        budget -= len(wav_S)
        if budget < 0:
            return found
    return found


def main() -> int:
    """Print the table, or one JSON document; the exit code."""
    options = _parse()
    torch.set_num_threads(options.threads)
    try:
        rows = _run(options)
    except OrchestratorError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if options.json:
        print(
            json.dumps(
                [
                    {"features": r.features, "K": r.num_clusters, **r.quality._asdict()}
                    for r in rows
                ],
                indent=1,
            )
        )
        return 0
    print(f"{'features':<20} {'K':>5} {'PNMI':>7} {'phone purity':>13} {'cluster purity':>15}")
    for row in rows:
        pnmi, phone, cluster = row.quality
        print(
            f"{row.features:<20} {row.num_clusters:>5} {pnmi:>7.3f} {phone:>13.3f} {cluster:>15.3f}"
        )
    return 0


def _run(options: argparse.Namespace) -> list[Scored]:
    model: Any = HubertModel.from_pretrained(options.encoder, dtype=torch.float32)
    model.eval()
    train = load_train(options.train, options.fit_hours, options.lowpass_hz)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.spoken or Path(scratch)
        if not options.spoken:
            speak(folder, options.voices)
        test = load_spoken(folder, options.lowpass_hz)
    layers = options.layers or range(1, model.config.num_hidden_layers + 1)
    return compare(model, train, test, options.clusters, layers)


def _contenders(
    model: HubertModel, grid: Grid, train: Sequence[Wave], layers: Sequence[int]
) -> Iterator[tuple[str, Callable[[Wave], Floats]]]:
    mfcc = _numpy(targets.mfcc(grid))
    yield "mfcc", mfcc
    seen_TD = np.concatenate([mfcc(wav_S) for wav_S in train])
    mean_D, std_D = seen_TD.mean(axis=0), seen_TD.std(axis=0) + 1e-6
    yield "mfcc standardised", lambda wav_S: (mfcc(wav_S) - mean_D) / std_D
    for layer in layers:
        yield f"encoder layer {layer}", _numpy(_layer_of(model, layer))


def _layer_of(model: HubertModel, layer: int) -> targets.Features:
    def compute(wav_S: torch.Tensor) -> torch.Tensor:
        hidden_states = model(wav_S[None], output_hidden_states=True).hidden_states
        feats_TD: torch.Tensor = hidden_states[layer][0]
        return feats_TD

    return compute


def _numpy(features: targets.Features) -> Callable[[Wave], Floats]:
    def compute(wav_S: Wave) -> Floats:
        with torch.inference_mode():
            return features(torch.from_numpy(wav_S)).numpy()

    return compute


def _scheme(into: Path, voice: str, sentences: Sequence[str]) -> Iterator[str]:
    yield f"(voice_{voice})"
    for n, sentence in enumerate(sentences):
        target = into / f"{voice}-{n:03d}"
        text = sentence.replace('"', "")
        yield f'(let ((u (utt.synth (Utterance Text "{text}"))))'
        yield f'  (utt.save.wave u "{target}.wav" \'riff) (utt.save.segs u "{target}.lab"))'


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unit_quality", description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="HuBERT in Hugging Face format")
    parser.add_argument(
        "--train", type=Path, required=True, help="speech that k-means is fitted on"
    )
    parser.add_argument("--layers", type=int, nargs="+", help="of the encoder; all when absent")
    parser.add_argument("--fit-hours", type=float, default=1.0, help="hours of it")
    parser.add_argument(
        "--spoken", type=Path, help="test speech: .wav with .lab; Festival speaks when absent"
    )
    parser.add_argument("--voices", nargs="+", default=VOICES, help="Festival's voices")
    parser.add_argument(
        "--clusters", type=int, nargs="+", default=[100], help="numbers of k-means clusters"
    )
    parser.add_argument(
        "--lowpass-hz", type=float, help="band limit of all speech, as in the encoder's recipe"
    )
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
