"""Whether what a run left behind is what its manifests say: every byte, key and training step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import CorruptError, LedgerError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import Artifact, differences
from orchestrator.ledger.coverage import replay
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.keys import key_of
from orchestrator.plan.planner import Instance


@dataclass(frozen=True)
class Verdict:
    """What was found out about one stage instance."""

    instance: str
    num_files: int
    num_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What else was proven."""
    remedy: str = ""
    """What to do about files that are not what the manifest says."""


def verify(run: RunFolder, store: Store, *, is_alive: bool = False) -> Iterator[Verdict]:
    """A verdict on every stage instance of the run, in data order; reads every byte.

    ``is_alive``: somebody still works on what is not complete.
    """
    for instance in run.plan().instances:
        artifact = store.artifact(instance.stage, instance.key)
        sizes: list[int] = []
        problems: list[str] = []
        notes: tuple[str, ...] = ()
        try:
            sizes += [file["size"] for file in artifact.manifest()["files"].values()]
            problems += _problems(instance, artifact)
            notes = _notes(instance, artifact)
        except FileNotFoundError:
            remedy = "the run is at work on it" if is_alive else "`orchestrator resume` finishes it"
            problems.append(f"not complete; {remedy}")
        except LedgerError as error:
            problems.append(str(error))
        again = f"`orchestrator resume {run.name}` makes it anew"
        is_damaged = problems and sizes  # what has a manifest passes for complete
        remedy = f"remove {artifact.storage.url}, then {again}" if is_damaged else ""
        yield Verdict(instance.id, len(sizes), sum(sizes), tuple(problems), notes, remedy)


def _problems(instance: Instance, artifact: Artifact) -> Iterator[str]:
    if key_of(artifact.manifest()["inputs"]) != instance.key:
        yield f"{artifact.storage.url}: the manifest's inputs do not make the key {instance.key}"
    yield from artifact.problems()
    if instance.steps:
        for manifest in checkpoints.committed(artifact.storage):  # what retention has left
            files = manifest.model_dump(mode="json")["files"]
            yield from differences(checkpoints.folder_of(artifact.storage, manifest), files)


def _notes(instance: Instance, artifact: Artifact) -> tuple[str, ...]:
    """What the metric lines prove of a training. Raises CorruptError when they prove nothing."""
    if not instance.steps or not artifact.storage.exists("metrics.jsonl"):
        return ()  # what is missing is among the artifact's problems
    lines = artifact.storage.read_bytes("metrics.jsonl").splitlines()
    try:
        _require_weights(instance, artifact.facts)
        return (replay(artifact.facts, [json.loads(line) for line in lines], instance.steps),)
    except CorruptError as error:
        raise CorruptError(f"{artifact.storage.url}/metrics.jsonl: {error}") from None


def _require_weights(instance: Instance, facts: Mapping[str, Any]) -> None:
    """Raise CorruptError when sources were mixed by other weights than those of the key."""
    used = {stream["name"]: stream["weight"] for stream in facts.get("mixture", ())}
    if used != (wanted := instance.inputs["fields"].get("mixture", {})):
        raise CorruptError(f"mixed by {used}, and the key says {wanted}")
