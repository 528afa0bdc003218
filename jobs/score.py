"""Scores a model on suites without a run: what ``orchestrator score`` starts.

In: an order (``orchestrator.control.score.Scoring`` as JSON): where a model, its encoder and its
codebook are, perhaps another to be compared with it, and suites with their folders. Out: a JSON
document of all scores; in a folder, where one is asked for, each suite's scores, log-probabilities,
official tables and submission. What is done is printed, a line at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jobs import hub
from jobs.device import own_device
from jobs.encoder import DESCRIPTION, copy_published, describe
from jobs.scoring.checkpoint_model import load_checkpoint
from jobs.scoring.likelihood import Likelihood, log_probs, pieces_of
from jobs.scoring.scored_suite import SuiteTokens, document
from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import compare
from jobs.scoring.suites.submission import About
from jobs.scoring.suites.suite import Suite
from jobs.scoring.unit_model import Vocabulary, load_model, vocabulary_of
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.units import EncoderSpec, read_codebook
from jobs.speech.whole_files import Spoken, WholeFiles
from jobs.suite_scores import fetched, means_of, write_scores, write_submission
from jobs.suite_units import shards_of
from orchestrator.errors import ExitCode, OrchestratorError, os_words
from orchestrator.ledger.new_folder import new_folder
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.spec.recipe import Encoder, Model

AGAINST = "against"
"""Folder of what a model is compared with."""
_SHOWN_EVERY = 20
"""Batches of a model between two lines."""


def score(order: Mapping[str, Any], to: Path | None = None) -> dict[str, Any]:
    """The scores of all suites. Raises what opening, reading and scoring them raises."""
    suites = [(open_suite(kind, folder), Path(folder)) for kind, folder in order["suites"]]
    how = {name: order[name] for name in ("bootstrap_samples", "seed")}
    heard: dict[str, list[list[Spoken]]] = {}  # models of one tokenizer share units
    first, *others = (_found_of(model, suites, heard) for model in order["models"])
    found = _written(first, suites, how, to)
    for other in others:
        found["against"] = _written(other, suites, how, to / AGAINST if to else None)
        found["differences"] = {
            suite.kind: compare(suite, means_of(one), means_of(its), **how)
            for (suite, _), one, its in zip(suites, first.of_suites, other.of_suites, strict=True)
        }
    return found


class _Found(NamedTuple):
    """What a model finds of each suite."""

    model: str
    vocabulary: Vocabulary
    of_suites: list[dict[str, Likelihood]]


def _written(
    scored: _Found,
    suites: Sequence[tuple[Suite, Path]],
    how: Mapping[str, Any],
    to: Path | None,
) -> dict[str, Any]:
    """The scores of one model, in a folder too where one is given."""
    found = {}
    for (suite, _), likelihoods in zip(suites, scored.of_suites, strict=True):
        found[suite.kind] = document(suite, likelihoods, scored.vocabulary, **how)
        if to:
            write_scores(Storage(str(to / suite.kind)), suite, likelihoods, found[suite.kind])
    if to:
        pairs = ((suite, own) for (suite, _), own in zip(suites, scored.of_suites, strict=True))
        about = About(
            system_description=scored.model, train_set="<required: what it was trained on>"
        )
        write_submission(Storage(str(to)), pairs, about)
    return {"model": scored.model, "suites": found}


def _found_of(
    about: Mapping[str, Any],
    suites: Sequence[tuple[Suite, Path]],
    heard: dict[str, list[list[Spoken]]],
) -> _Found:
    """What a model finds; ``heard``: the units of all suites by tokenizer, as far as known."""
    name, tokenizer = about["name"], about["tokenizer"]
    model, vocabulary = _loaded(about)
    num_tokens = model.get_input_embeddings().num_embeddings
    vocabulary.require_room(tokenizer["num_units"], num_tokens, where=name)
    if (key := json.dumps(tokenizer)) not in heard:
        with encoder_of(tokenizer) as encoder:
            heard[key] = list(_spoken(tokenizer, encoder, suites))
    of_suites = [
        _likelihoods(model, vocabulary, suite, utterances)
        for (suite, _), utterances in zip(suites, heard[key], strict=True)
    ]
    return _Found(name, vocabulary, of_suites)


def _of_checkpoint(train: Storage, about: Mapping[str, Any], num_units: int) -> Any:
    spec = Model.model_validate(about["model"])
    source = about["text_model"]
    with tempfile.TemporaryDirectory(prefix="text-model-") as cache:
        if not Path(source).is_dir():
            kept = hub.place_of(Storage(about["store_url"]), source, spec.revision)
            source = str(kept.fetch(hub.CONFIG, Path(cache)).parent)
        model = load_checkpoint(train, about["name"], spec, source=source, num_units=num_units)
    return model.to(own_device())


def _loaded(about: Mapping[str, Any]) -> tuple[Any, Vocabulary]:
    """A model, and how it takes units."""
    if checkpoint := about["checkpoint"]:
        num_units = about["tokenizer"]["num_units"]
        model = _of_checkpoint(Storage(about["model_url"]), checkpoint, num_units)
        return model, Vocabulary(context_length=about["context_length"])
    with tempfile.TemporaryDirectory(prefix="model-") as cache:
        folder = fetched(Storage(about["model_url"]), Path(cache))
        vocabulary = vocabulary_of(folder)
        if length := about["context_length"]:
            vocabulary = replace(vocabulary, context_length=length)
        return load_model(folder, where=about["name"]), vocabulary


@contextmanager
def encoder_of(tokenizer: Mapping[str, Any]) -> Iterator[SpeechEncoder]:
    """The encoder of a tokenizer: that of a run's store, or a published one."""
    view = {name: tokenizer[name] for name in ("layer", "output", "precision")}
    if tokenizer["encoder_url"]:
        yield EncoderSpec(url=tokenizer["encoder_url"], **view).load()
        return
    spec = Encoder.model_validate(
        {
            **tokenizer["published"],
            **view,
            "normalize_waveform": tokenizer["normalize_waveform"],
        }
    )
    with tempfile.TemporaryDirectory(prefix="encoder-") as scratch:
        copy_published(spec, str(spec.model), Path(scratch))
        Path(scratch, DESCRIPTION).write_bytes(to_json(describe(spec, Path(scratch))))
        yield EncoderSpec(url=scratch, **view).load()


def _spoken(
    tokenizer: Mapping[str, Any], encoder: SpeechEncoder, suites: Sequence[tuple[Suite, Path]]
) -> Iterator[list[Spoken]]:
    """The utterances of each suite."""
    centroids_KD = read_codebook(Storage(tokenizer["codebook_url"]))["centroids"]
    heard = WholeFiles(encoder, [centroids_KD], dedup=tokenizer["deduplicated"])
    for suite, root in suites:
        utterances: list[Spoken] = []
        for some in shards_of(suite):
            for (name, _), file in zip(some, heard([root / p for _, p in some]), strict=True):
                utterances.append(Spoken(name, file.units[0], file.num_samples))
            _say(f"{suite.kind}: {len(utterances):,} of {len(suite.files):,} recordings encoded")
        yield utterances


def _likelihoods(
    model: Any, vocabulary: Vocabulary, suite: Suite, utterances: Sequence[Spoken]
) -> dict[str, Likelihood]:
    tokens, scored = SuiteTokens(utterances, vocabulary), dict[int, list[float]]()
    for number, batch in enumerate(tokens.batches):
        scored[number] = log_probs(model, pieces_of(tokens.sequences, batch))
        if number % _SHOWN_EVERY == 0 or number + 1 == len(tokens.batches):
            _say(f"{suite.kind}: {number + 1:,} of {len(tokens.batches):,} batches scored")
    return tokens.likelihoods(scored)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Score as an order says; says in one line why it cannot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", required=True, type=Path, help="what to score, as JSON")
    parser.add_argument("--result", required=True, type=Path, help="where the scores go, as JSON")
    parser.add_argument("--to", type=Path, help="folder to be made")
    options = parser.parse_args(argv)
    try:
        order = json.loads(options.order.read_bytes())
        if options.to:
            with new_folder(options.to, "-o") as made:
                scores = score(order, made)
                (made / "scores.json").write_bytes(to_json(scores))
        else:
            scores = score(order)
        options.result.write_bytes(to_json(scores))
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{os_words(error)}\n")
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
