"""A causal language model over units, from a folder, and how it takes them.

Any model in Hugging Face format: one that ``orchestrator export`` wrote, whose ``units.json`` says
all; a release of TWIST, whose config says at which token units begin (``config.offset``); any other
causal LM, whose token is the unit. What neither file says is not assumed: there is no BOS and no
EOS, even where a text model's config still names some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.device import own_device
from jobs.scoring.likelihood import Tokens
from jobs.weights import load_whole
from orchestrator.errors import OrchestratorError, RequestError
from orchestrator.plan.model_config import num_positions

UNITS, CONFIG = "units.json", "config.json"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """How the units of an utterance become the tokens of a model."""

    offset: int = 0
    """Token of unit 0; unit n is n after it."""
    bos: int | None = None
    """Token before the units; none where None."""
    eos: int | None = None
    """Token after the units, which is scored as they are; none where None."""
    context_length: int | None = None
    """Most tokens that the model reads at once; None for no limit."""

    def tokens(self, units_L: Tokens) -> Tokens:
        """The sequence that the model reads."""
        before, after = ([] if t is None else [t] for t in (self.bos, self.eos))
        return np.concatenate([before, units_L.astype(np.int64) + self.offset, after]).astype(
            np.int64
        )

    @property
    def rule(self) -> str:
        """What of a file is scored, in words that stand beside each score."""
        if self.bos is None:
            first = "no BOS, so that its first unit is context and not scored"
        else:
            first = f"BOS (token {self.bos}) first, all units scored"
        last = "no EOS" if self.eos is None else f"EOS (token {self.eos}) scored as the last"
        longer = (
            "no limit of length"
            if self.context_length is None
            else f"longer ones in windows of {self.context_length} tokens advancing by half, each "
            "token scored once"
        )
        return f"each file alone and whole; {first}; {last}; {longer}; natural logarithm"

    def require_room(self, num_units: int, vocab_size: int, *, where: object) -> None:
        """Raises RequestError where the model has no token for some unit."""
        others = [token for token in (self.bos, self.eos) if token is not None]
        needed = max([self.offset + num_units - 1, *others]) + 1
        if needed > vocab_size:
            raise RequestError(
                f"{where}: has {vocab_size} tokens, but {num_units} units from token {self.offset} "
                f"on need {needed}; name the codebook that the model was trained with"
            )


def vocabulary_of(folder: Path) -> Vocabulary:
    """How the model in a folder takes units. Raises RequestError for what is no model."""
    config = _json_of(folder / CONFIG)
    about = _json_of(folder / UNITS) if (folder / UNITS).is_file() else {}
    limit = _whole_number(about, "context_length", folder / UNITS)
    own = _whole_number(config, "offset", folder / CONFIG)
    offset = _whole_number(about, "offset", folder / UNITS)
    return Vocabulary(
        offset=(own if offset is None else offset) or 0,
        bos=_whole_number(about, "bos", folder / UNITS),
        eos=_whole_number(about, "eos", folder / UNITS),
        context_length=num_positions(config) if limit is None else limit,
    )


def load_model(
    folder: Path,
    *,
    where: str,
    refusal: type[OrchestratorError] = RequestError,
    device: torch.device | None = None,
) -> Any:
    """The model in fp32, ready to score, on this process's device where none is given.

    Raises ``refusal``, beginning with ``where``, when its weights are not those of its config.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # theirs is untyped
    here = device or own_device()
    model: Any = load_whole(
        AutoModelForCausalLM, folder, where=where, refusal=refusal, dtype=torch.float32
    )
    return model.to(here).eval()


def _json_of(path: Path) -> Mapping[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(
            f"{path}: not there; give a model's folder in Hugging Face format"
        ) from None
    except ValueError as error:
        raise RequestError(f"{path}: is no JSON ({error}); fetch the model again") from None
    if not isinstance(said, dict):
        raise RequestError(f"{path}: is no mapping; fetch the model again")
    return said


def _whole_number(said: Mapping[str, Any], name: str, where: Path) -> int | None:
    value = said.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise RequestError(f"{where}: {name}: {value!r} is no token; give a whole number or null")
    return value
