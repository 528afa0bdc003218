"""A model scored on a suite without a run, against the definition done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import OPTConfig, OPTForCausalLM

from jobs.score import main
from jobs.speech.lloyd import Fit, nearest
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.units import deduplicated, write_codebook
from orchestrator.control.score import ScoredModel, Scoring, Tokenizer
from orchestrator.errors import ExitCode
from orchestrator.ledger.storage import Storage, sha256_of, to_json
from tests.encoders import small_encoder, speechlike
from tests.tiny_suite import make_tiny_suite

LAYER, OFFSET = 2, 3


class World:
    """A model with units from token 3 on, an encoder, a codebook and a suite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wavs = make_tiny_suite(folder / "suite")
        small_encoder("hubert base").save_pretrained(folder / "encoder")
        self.encoder = SpeechEncoder.load(folder / "encoder", LAYER)
        (feats_TD,) = self.encoder.features(speechlike(2.0))
        self.centroids_KD = feats_TD[::7].contiguous()
        fit = Fit(centroids=self.centroids_KD, inertia=0.0, iterations=0, num_frames=99)
        write_codebook(Storage(str(folder / "codebook")), fit)
        self.num_units = len(self.centroids_KD)
        torch.manual_seed(0)
        config = OPTConfig(
            vocab_size=self.num_units + OFFSET,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            init_std=0.5,
            offset=OFFSET,
        )
        self.model = OPTForCausalLM(config).eval()
        self.model.save_pretrained(folder / "model")

    def order(
        self,
        context_length: int | None = None,
        against: Callable[[ScoredModel], tuple[ScoredModel, ...]] = lambda _: (),
        **changes: Any,
    ) -> Path:
        published = {"model": str(self.folder / "encoder"), "revision": None, "frame_rate_hz": 50.0}
        tokenizer = Tokenizer(
            encoder_url="",
            published={**published, "sha256": sha256_of(self.folder / "encoder/model.safetensors")},
            codebook_url=str(self.folder / "codebook"),
            num_units=self.num_units,
            layer=LAYER,
            output="after_residual",
            precision="fp32",
            normalize_waveform=False,
            deduplicated=True,
        )
        model = ScoredModel(
            name="model",
            model_url=str(self.folder / "model"),
            context_length=context_length,
            tokenizer=tokenizer,
        )
        scoring = Scoring(
            models=(model, *against(model)),
            suites=(("swuggy", str(self.folder / "suite")),),
            bootstrap_samples=100,
            seed=0,
        )
        path = self.folder / "order.json"
        path.write_bytes(to_json({**asdict(scoring), **changes}))
        return path

    def main(self, *words: str, **changes: Any) -> int:
        result = ("--result", str(self.folder / "result.json"))
        return main(["--order", str(self.order(**changes)), *result, *words])

    @torch.no_grad()
    def by_hand(self, wav: Path) -> float:
        """Mean log-probability of a recording: its units alone, its first one as context."""
        wav_S, _ = soundfile.read(wav, dtype="float32")
        (feats_TD,) = self.encoder.features([wav_S])
        units_T = nearest(feats_TD, self.centroids_KD).index_N.numpy().astype(np.uint16)
        tokens_L = torch.from_numpy(deduplicated(units_T)[0].astype(np.int64)) + OFFSET
        log_p_LV = torch.log_softmax(self.model(tokens_L[None]).logits[0].double(), -1)
        return float(log_p_LV[:-1].gather(1, tokens_L[1:, None]).mean())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_scores_are_the_definition_done_by_hand(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    out = world.folder / "out"
    assert world.main("--to", str(out)) == ExitCode.DONE, capsys.readouterr().err
    table = pq.read_table(world.folder / "out/swuggy/log_probs.parquet")
    means = np.array(table["log_prob"]) / np.array(table["num_scored"])
    by_hand = [world.by_hand(wav) for wav in world.wavs]
    assert table["id"].to_pylist() == [f"dev/{wav.stem}" for wav in world.wavs]
    assert means == pytest.approx(by_hand, abs=1e-5)
    # Words and non-words follow each other, in two voices a pair.
    won = [float(a > b) for a, b in zip(by_hand[::2], by_hand[1::2], strict=True)]
    found = json.loads((world.folder / "result.json").read_text())
    swuggy = found["suites"]["swuggy"]
    assert swuggy["splits"]["dev"]["figures"][0]["value"] == np.mean(won)
    assert "no BOS" in swuggy["likelihood_rule"]
    assert len((out / "submission/sLM21/lexical/dev.txt").read_text().splitlines()) == 16
    assert json.loads((world.folder / "out/scores.json").read_text()) == found
    assert "swuggy: 16 of 16 recordings encoded" in capsys.readouterr().out


def test_a_context_that_is_given_counts(world: World) -> None:
    assert world.main() == world.main(context_length=4) == ExitCode.DONE
    found = json.loads((world.folder / "result.json").read_text())
    assert "windows of 4 tokens" in found["suites"]["swuggy"]["likelihood_rule"]


def shorter(model: ScoredModel) -> tuple[ScoredModel, ...]:
    return (replace(model, name="short", context_length=2),)


def test_two_models_are_compared_by_pairs(world: World) -> None:
    """One whose context is shorter, in its own folder; and the same model, which differs by 0."""
    out = world.folder / "out"
    assert world.main("--to", str(out), against=shorter) == ExitCode.DONE
    found = json.loads((world.folder / "result.json").read_text())
    assert found["against"]["model"] == "short"
    rows = [of["suites"]["swuggy"]["splits"]["dev"]["figures"] for of in (found, found["against"])]
    differences = found["differences"]["swuggy"]["splits"]["dev"]["figures"]
    for ours, theirs, row in zip(*rows, differences, strict=True):
        assert row["difference"] == pytest.approx(ours["value"] - theirs["value"])
    assert (out / "against/swuggy/log_probs.parquet").is_file()
    assert world.main(against=lambda model: (model,)) == ExitCode.DONE
    found = json.loads((world.folder / "result.json").read_text())
    (first, *_) = found["differences"]["swuggy"]["splits"]["dev"]["figures"]
    assert (first["difference"], first["difference_95"]) == (0.0, [0.0, 0.0])


def test_what_is_wrong_is_said_in_one_line(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [["swuggy", str(world.folder / "model")]]
    assert world.main(suites=gone) == ExitCode.BAD_REQUEST
    assert "holds no lexical/dev or lexical/test" in capsys.readouterr().err
    world.wavs[5].write_bytes(b"RIFF, but not a recording")
    out = world.folder / "out"
    assert world.main("--to", str(out)) == ExitCode.FAILED
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{world.wavs[5]}: ")
    assert not out.exists()


def test_a_model_without_a_token_for_each_unit_is_refused(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.folder / "model/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "offset": OFFSET + 1}))
    assert world.main() == ExitCode.BAD_REQUEST
    assert "name the codebook that the model was trained with" in capsys.readouterr().err
