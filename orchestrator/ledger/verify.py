"""Whether what a run left behind is what its manifests say: every byte, key and training step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.errors import LedgerError
from orchestrator.ledger.artifact import Artifact
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


def verify(run: RunFolder, store: Store) -> Iterator[Verdict]:
    """A verdict on every stage instance of the run, in data order; reads every byte."""
    for instance in run.plan().instances:
        artifact = store.artifact(instance.stage, instance.key)
        try:
            files = artifact.manifest()["files"]
            problems = tuple(_problems(instance, artifact))
        except FileNotFoundError:
            yield Verdict(instance.id, 0, 0, ("not complete; `orchestrator resume` finishes it",))
            continue
        except LedgerError as error:
            yield Verdict(instance.id, 0, 0, (str(error),))
            continue
        yield Verdict(instance.id, len(files), sum(f["size"] for f in files.values()), problems)


def _problems(instance: Instance, artifact: Artifact) -> Iterator[str]:
    if key_of(artifact.manifest()["inputs"]) != instance.key:
        yield f"{artifact.storage.url}: the manifest's inputs do not make the key {instance.key}"
    yield from artifact.problems()
    if instance.stage == "train":
        yield from _step_problems(instance, artifact)


def _step_problems(instance: Instance, artifact: Artifact) -> Iterator[str]:
    """Every optimizer step must be recorded once, in order."""
    try:
        lines = artifact.storage.read_bytes("metrics.jsonl").decode().splitlines()
    except FileNotFoundError:
        yield f"{artifact.storage.url}/metrics.jsonl: missing"
        return
    steps = [json.loads(line)["step"] for line in lines]
    if steps != list(range(1, (instance.steps or 0) + 1)):
        yield f"{artifact.storage.url}/metrics.jsonl: steps are not 1..{instance.steps}, each once"
