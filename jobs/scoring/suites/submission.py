"""A submission folder as the ZeroSpeech benchmarks take it: `zrc benchmarks:run`, `zrc submit`.

Each file of a split has one line, its name and its log-probability. ``meta.yaml`` says what is
known of the model; what only its authors know stays a placeholder, which `zrc` refuses until they
have filled it in. sSIMI, the semantic part of sLM21, compares embeddings, which a language model of
units does not give: run it with ``-t lexical syntactic``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml

from jobs.scoring.suites.babyslm import LEXICAL, SYNTACTIC
from jobs.scoring.suites.scores import require_complete
from jobs.scoring.suites.suite import Suite


class About(NamedTuple):
    """What a submission says of the model."""

    system_description: str
    train_set: str
    gpu_budget: str = ""
    """GPU hours of training, in words; optional."""


class _Benchmark(NamedTuple):
    name: str
    parameters: Mapping[str, Any]


_SLM21 = _Benchmark(
    "sLM21",
    {
        "quiet": False,
        "semantic": {
            "metric": "euclidean",
            "pooling": "mean",
            "synthetic": True,
            "librispeech": True,
            "n_jobs": 1,
        },
    },
)
_PROSAUDIT = _Benchmark("prosAudit", {"quiet": False})
_FILES = {"swuggy": "lexical/{}.txt", "sblimp": "syntactic/{}.txt", "prosaudit": "english_{}.txt"}
_BENCHMARKS = {"swuggy": _SLM21, "sblimp": _SLM21, "prosaudit": _PROSAUDIT}


def submission(scored: Iterable[tuple[Suite, Mapping[str, float]]], about: About) -> dict[str, str]:
    """Path to text of all files, below one folder for each benchmark (sLM21, prosAudit, babyslm).

    Suites that have no submission format (spoken StoryCloze, SALMon) give nothing. Raises DataError
    where an utterance has no log-probability, or one of no file is given.
    """
    found: dict[str, str] = {}
    for suite, log_probs in scored:
        if suite.kind not in (*_FILES, "babyslm"):
            continue
        require_complete(suite, log_probs)
        if suite.kind == "babyslm":
            found |= _of_babyslm(suite, log_probs)
            continue
        benchmark = _BENCHMARKS[suite.kind]
        for split in suite.splits:
            path = _FILES[suite.kind].format(split)
            found[f"{benchmark.name}/{path}"] = _lines(suite.files_of(split), log_probs)
        found[f"{benchmark.name}/meta.yaml"] = _yaml(_meta(benchmark.name, about))
        found[f"{benchmark.name}/params.yaml"] = _yaml(benchmark.parameters)
    return found


def _of_babyslm(suite: Suite, log_probs: Mapping[str, float]) -> dict[str, str]:
    found = {}
    for split in suite.splits:
        for task in (LEXICAL, SYNTACTIC):
            names = [name for name in suite.files if name.startswith(f"{split}/{task}/")]
            if names:
                found[f"babyslm/{task}/{split}.txt"] = _lines(names, log_probs)
    return found


def _lines(names: Iterable[str], log_probs: Mapping[str, float]) -> str:
    return "".join(f"{PurePosixPath(name).name} {log_probs[name]!r}\n" for name in names)


def _meta(benchmark: str, about: About) -> dict[str, Any]:
    return {
        "username": None,
        "benchmark_name": benchmark,
        "model_info": {
            "model_id": None,
            "system_description": about.system_description,
            "train_set": about.train_set,
            "gpu_budget": about.gpu_budget or None,
        },
        "publication": {
            "author_label": "<required: a short label, as in author1 et al.>",
            "authors": "<required: full names, separated by commas>",
            "paper_title": None,
            "paper_url": None,
            "publication_year": 0,  # no placeholder: the official reader takes whole numbers alone
            "institution": "<required: university or company>",
            "team": None,
        },
        "open_source": False,
        "code_url": None,
    }


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
