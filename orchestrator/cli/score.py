"""``orchestrator score``: a model on suites of pairs, without a recipe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from orchestrator.cli.arguments import add_cluster, named_run, say_if_moved
from orchestrator.cli.terminal import Terminal
from orchestrator.control.cluster_choice import choose_cluster
from orchestrator.control.score import (
    CONFIG,
    ScoredModel,
    Scoring,
    Tokenizer,
    checkpoint_of_run,
    is_model_folder,
    model_in_folder,
    model_of_run,
    says_units,
    score,
    suite_named,
    tokenizer_of_export,
    tokenizer_of_run,
)
from orchestrator.errors import RequestError
from orchestrator.ledger.new_folder import require_free
from orchestrator.ledger.run import PLAN, RunFolder
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster

MIN_BOOTSTRAP_SAMPLES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL SUITE... [--variant V] [--tokenizer T] [--against M] [-o DIR] ..."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's name, its folder's path or URL; or a folder in Hugging Face format: what "
        "`orchestrator export` wrote, a release of TWIST, any causal LM over units",
    )
    parser.add_argument(
        "suites",
        metavar="SUITE",
        nargs="+",
        help="a suite and its folder in its official layout: swuggy=/data/sLM21",
    )
    add_cluster(parser)
    parser.add_argument("--variant", metavar="V", help="of a run with several: whose model")
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        help="of a run: the model as its checkpoint of this step has it; the finished one when "
        "absent",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="a run or an exported model whose encoder and codebook make the units, for a model "
        "whose folder does not say; --against has its own where that says them",
    )
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="another model, or another variant of the same run: the difference of both, by a "
        "bootstrap that draws the same pairs for both",
    )
    parser.add_argument(
        "--against-variant", metavar="V", help="of a run with several in --against: whose model"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="folder to be made for scores, official tables and submissions",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--bootstrap-samples",
        metavar="N",
        type=int,
        default=1000,
        help="resamplings of pairs behind the 95 %% intervals",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the bootstrap")


def run(options: argparse.Namespace) -> int:
    """Score, and print a table. Raises RequestError for what cannot be scored."""
    suites = tuple(map(suite_named, options.suites))
    if len({kind for kind, _ in suites}) < len(suites):
        raise RequestError("SUITE: one kind is named twice; score its folders one after the other")
    if options.bootstrap_samples < MIN_BOOTSTRAP_SAMPLES:
        raise RequestError(f"--bootstrap-samples: must be at least {MIN_BOOTSTRAP_SAMPLES}")
    if options.seed < 0:
        raise RequestError(f"--seed: {options.seed} is below 0; give 0 or more")
    if options.against_variant and not options.against:
        raise RequestError(
            "--against-variant: names a variant of what --against names; for another variant of "
            "MODEL itself give --against V"
        )
    if options.output:
        require_free(options.output.absolute(), "-o")
    cluster = _cluster(options)
    scoring = Scoring(
        models=_models(options, cluster),
        suites=suites,
        bootstrap_samples=options.bootstrap_samples,
        seed=options.seed,
    )
    found = score(
        scoring, cluster, to=options.output, on_line=lambda line: print(line, file=sys.stderr)
    )
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0


def _cluster(options: argparse.Namespace) -> Cluster | None:
    """The cluster that is named or found; none where there is none, and a folder is scored."""
    try:
        file, _ = choose_cluster(options.cluster, None)
    except RequestError:
        if options.cluster or not is_model_folder(options.model):
            raise
        return None
    return load_cluster(file)


def _models(options: argparse.Namespace, cluster: Cluster | None) -> tuple[ScoredModel, ...]:
    """MODEL, and what ``--against`` names."""
    tokenizer = _tokenizer(options, cluster) if options.tokenizer else None
    if options.step is not None:
        if is_model_folder(options.model):
            raise RequestError("--step: is of a run; MODEL is the folder of one model")
        run = _run(options, options.model)
        first = checkpoint_of_run(*run, options.variant, options.step, tokenizer, cluster)
    else:
        if options.variant and is_model_folder(options.model) and not options.tokenizer:
            raise RequestError("--variant: is of a run; MODEL is the folder of one model")
        first = _model(options, options.model, options.variant, tokenizer, cluster)
    return (first, _other(options, tokenizer, cluster)) if options.against else (first,)


def _other(
    options: argparse.Namespace, tokenizer: Tokenizer | None, cluster: Cluster | None
) -> ScoredModel:
    """A variant of the same run, or another model, with its own units where it says them."""
    name, variant = options.against, options.against_variant
    if variant and is_model_folder(name):
        raise RequestError("--against-variant: is of a run; --against is the folder of one model")
    if not is_model_folder(options.model) and name in _variants(options, options.model):
        return _model(options, options.model, name, tokenizer, cluster)
    if not is_model_folder(name) and not variant and len(names := _variants(options, name)) > 1:
        raise RequestError(
            f"--against: {name} has several variants; name one by --against-variant: "
            f"{', '.join(names)}"
        )
    is_told = not is_model_folder(name) or says_units(Path(name))
    return _model(options, name, variant, None if is_told else tokenizer, cluster)


def _variants(options: argparse.Namespace, name: str) -> tuple[str, ...]:
    run, _ = named_run(options, name)
    return tuple(variant["name"] for variant in run.plan().variants)


def _model(
    options: argparse.Namespace,
    name: str,
    variant: str | None,
    tokenizer: Tokenizer | None,
    cluster: Cluster | None,
) -> ScoredModel:
    if not is_model_folder(name):
        return model_of_run(*_run(options, name), variant, tokenizer)
    folder = Path(name)
    return model_in_folder(folder, tokenizer or tokenizer_of_export(folder, cluster))


def _tokenizer(options: argparse.Namespace, cluster: Cluster | None) -> Tokenizer:
    if is_model_folder(options.tokenizer):
        return tokenizer_of_export(Path(options.tokenizer), cluster)
    variant = options.variant if is_model_folder(options.model) else None
    return tokenizer_of_run(*_run(options, options.tokenizer), variant)


def _run(options: argparse.Namespace, name: str) -> tuple[RunFolder, Store]:
    folders = sorted(str(path.parent) for path in Path(name).glob(f"*/{CONFIG}"))
    if name.strip() and folders and not Path(name, PLAN).exists():
        raise RequestError(f"{name}: is a folder of models; name one: {', '.join(folders)}")
    run, store = named_run(options, name)
    say_if_moved(run)
    return run, store


def show(found: Mapping[str, Any]) -> None:
    """Each suite's figures with their intervals and chance, and below them the rules."""
    terminal = Terminal()
    terminal.print(_scores_table(found))
    if "differences" in found:
        terminal.print(_differences_table(found["differences"]))
    for kind, scores in found["suites"].items():
        near = sum(of_split["num_near_ties"] for of_split in scores["splits"].values())
        terminal.print(
            f"{kind}: {scores['measure']}; {scores['likelihood_rule']}; {scores['rule']}; "
            f"{near} pairs closer than 1e-5"
        )


_NUMBERS = ("score", "95 % interval", "chance", "pairs")


def _scores_table(found: Mapping[str, Any]) -> Table:
    several = (found, *([found["against"]] if "against" in found else []))
    table = _table(*(["model"] if len(several) > 1 else []), "suite", "split", "figure", *_NUMBERS)
    for model in several:
        for name, split, row in _headlines(model["suites"]):
            named = (model["model"],) if len(several) > 1 else ()
            table.add_row(*named, name, split, *_cells(row))
    return table


def _differences_table(differences: Mapping[str, Any]) -> Table:
    table = _table("suite", "split", "figure", "difference", "95 % interval")
    for name, split, row in _headlines(differences):
        shown = (f"{100 * row['difference']:+.1f}", _interval(row["difference_95"]))
        table.add_row(name, split, row["name"], *shown)
    return table


def _table(*names: str) -> Table:
    """Whose numbers stand on the right."""
    numbers = {*_NUMBERS, "difference"}
    columns = (Column(n, justify="right" if n in numbers else "left") for n in names)
    return Table(*columns, box=None, pad_edge=False)


def _headlines(suites: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Suite, split and row of all figures that papers quote."""
    for scores in suites.values():
        for split, of_split in scores["splits"].items():
            rows = (row for row in of_split["figures"] if not row["table"])
            yield from ((scores["name"], split, row) for row in rows)


def _interval(ends: Sequence[float] | None) -> str:
    """In percent; "none" where a single pair stands for many."""
    if ends is None:
        return "none"
    low, high = (100 * end for end in ends)
    return f"{low:.1f} to {high:.1f}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{100 * row['value']:.1f}",
        _interval(row["interval_95"]),
        f"{100 * row['chance']:.0f}",
        f"{row['num_pairs']:,}",
    )
