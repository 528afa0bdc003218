"""Training state that survives: what exists, what to resume from, how it is committed and retired.

    checkpoints/step-00000500-a0003/      a = fencing number of the attempt that wrote it
        mp_rank_00_model_states.pt, …     each rank's files, and rng-00000.safetensors
        done-00000.json                   a rank's note that its files are whole, with their digests
        MANIFEST.json                     written last, exclusively: now it exists
    notes/skips-0001.json                 positions of the training order that are passed over
    notes/curves.json                     the id of its curves in trackers
    metrics/step-00000500-a0003.jsonl     steps since the checkpoint before, untimed
    metrics/step-00000500-a0003-validation.jsonl

A manifest lists the whole chain of metric segments behind it, so the curve of a training that went
back and forth is the chain of its last checkpoint: no gap, no repeat. The chain of the newest
attempt's newest checkpoint also says which older checkpoints are ancestors; what a zombie wrote
after it was fenced off is not on it, and is never loaded.

Nothing is unpickled before its digest was verified. DeepSpeed's own ``latest`` is not used.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger.storage import Storage, sha256_of, to_json
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Checkpoint as Policy

MANIFEST = "MANIFEST.json"
FOLDER = "checkpoints"
NOTES = "notes"
"""What a training has noted for attempts to come, and for its trackers."""
CHAINED = (f"{FOLDER}/", "metrics/")
"""What counts only as far as the manifest of a checkpoint names it."""
WORK_IN_PROGRESS = (*CHAINED, f"{NOTES}/")
"""Folders that carry their own digests, or none: no part of the finished artifact."""
_CURVES = f"{NOTES}/curves.json"
_NAME = re.compile(r"^step-(\d{8})-a(\d{4,})$")


class FileEntry(Spec):
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str
    """Digest."""


class Segment(Spec):
    """One file of metric lines."""

    path: str
    """Relative to the artifact's folder."""
    sha256: str
    """Digest."""


class AttemptSpan(Spec):
    """One attempt's part of a training; a training's history is a list of these."""

    lease_n: int
    """Fencing number."""
    first_step: int
    """First optimizer step it took."""
    world_size: int
    """Ranks."""
    zero_stage: int
    """DeepSpeed ZeRO stage."""
    micro_batch: int
    """Sequences per rank and forward pass."""
    device: str
    """``cpu``, or the accelerator's name."""
    artifact: str = ""
    """The artifact whose lease that was, ``<stage>-<first 12 digits of its key>``, when it is
    another than the one this is told of: steps of a training of another length."""


class Manifest(Spec):
    """A committed checkpoint."""

    step: int
    """Optimizer steps done."""
    lease_n: int
    """Fencing number of the attempt that wrote it."""
    world_size: int
    """Ranks that wrote it."""
    zero_stage: int
    """DeepSpeed ZeRO stage it was written in."""
    cursor: int
    """First position of the training order that is not used yet."""
    skips: tuple[int, ...] = ()
    """Positions that are passed over."""
    sample_hash: str
    """Running hash of the sample ids used so far."""
    files: dict[str, FileEntry]
    """Files in the checkpoint's folder."""
    metrics: tuple[Segment, ...]
    """Segments of training metrics from step 1 to ``step``."""
    validation: tuple[Segment, ...] = ()
    """Segments of validation losses up to ``step``."""
    rng: dict[str, str] = Field(default_factory=dict)
    """Rank to the file of its random generators' states."""
    history: tuple[AttemptSpan, ...] = ()
    """Attempts that led here."""
    tracker: str = ""
    """Id of the curves this training continues."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return name_of(self.step, self.lease_n)


def name_of(step: int, lease_n: int) -> str:
    """``step-00000500-a0003``."""
    return f"step-{step:08d}-a{lease_n:04d}"


def step_of(name: str) -> int:
    """The step of a checkpoint's name; 0 for no name."""
    match = _NAME.match(name)
    return int(match[1]) if match else 0


def steps_of(out: Storage) -> tuple[int, ...]:
    """The steps that checkpoints hold, oldest first, from one listing."""
    names = (path.split("/")[1] for path in out.list(FOLDER) if path.endswith(f"/{MANIFEST}"))
    return tuple(sorted(map(step_of, names)))


def newest_step(out: Storage) -> int:
    """The last step that a checkpoint holds; 0 without a checkpoint."""
    return max(steps_of(out), default=0)


def folder_of(out: Storage, manifest: Manifest) -> Storage:
    """Where a checkpoint's files lie."""
    return out.at(FOLDER, manifest.name)


def segment_path(step: int, lease_n: int, *, validation: bool = False) -> str:
    """Where the metric lines before a checkpoint lie."""
    return f"metrics/{name_of(step, lease_n)}{'-validation' if validation else ''}.jsonl"


def segment(path: str, lines: Sequence[dict[str, Any]]) -> tuple[Segment, bytes]:
    """One file of metric lines before it is written; floats keep every digit."""
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return Segment(path=path, sha256=_digest(data)), data


def content_of(manifest: Manifest) -> dict[str, str]:
    """Everything that a checkpoint needs but its manifest: path in the artifact to sha256."""
    files = {f"{FOLDER}/{manifest.name}/{n}": entry.sha256 for n, entry in manifest.files.items()}
    segments = (*manifest.metrics, *manifest.validation)
    return {segment.path: segment.sha256 for segment in segments} | files


def manifest_path(manifest: Manifest) -> str:
    """Where a checkpoint's manifest lies in the artifact."""
    return f"{FOLDER}/{manifest.name}/{MANIFEST}"


def join_segments(out: Storage, segments: Sequence[Segment]) -> bytes:
    """The lines of a chain of segments, in order. Raises CorruptError when one has changed."""
    found = [(segment, out.read_bytes(segment.path)) for segment in segments]
    for segment, data in found:
        if _digest(data) != segment.sha256:
            where = f"{out.url}/{segment.path}"
            raise CorruptError(f"{where}: bytes differ from the checkpoint's sha256")
    return b"".join(data for _, data in found)


def committed(out: Storage) -> list[Manifest]:
    """All checkpoints whose manifest is there, oldest first. Raises CorruptError."""
    names = [name for name in out.children(FOLDER) if _NAME.match(name)]
    found = [_read(out, name) for name in names]
    return sorted((m for m in found if m), key=lambda m: (m.step, m.lease_n))


def head_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """The newest checkpoint of the newest attempt that committed one: its chain is the curve."""
    return max(manifests, key=lambda m: (m.lease_n, m.step), default=None)


def resumable(manifests: Sequence[Manifest], leases: Sequence[int]) -> list[Manifest]:
    """Checkpoints to try, best first: ours, on the chain of the newest attempt that committed."""
    ours = [m for m in manifests if m.lease_n in leases]
    head = head_of(ours)
    if head is None:
        return []
    chain = {segment.path for segment in head.metrics}
    ancestors = [m for m in ours if segment_path(m.step, m.lease_n) in chain]
    return sorted(ancestors, key=lambda m: m.step, reverse=True)


def fetch_verified(out: Storage, manifest: Manifest, names: Sequence[str], into: Path) -> str:
    """Bring files of a checkpoint here and hash them; returns what is wrong, "" for nothing.

    What lies there already, with the manifest's digest, is not fetched from a remote store.
    """
    for name in names:
        path, entry = f"{FOLDER}/{manifest.name}/{name}", manifest.files[name]
        if out.local_root is None and not _difference(into / path, entry):
            continue
        try:
            problem = _difference(out.fetch(path, into), entry)
        except FileNotFoundError:
            problem = "missing"
        if problem:
            return f"{path}: {problem}"
    return ""


def _difference(local: Path, entry: FileEntry) -> str:
    """How a local file differs from its entry in a manifest, "" when it does not."""
    try:
        size = local.stat().st_size
    except FileNotFoundError:
        return "missing"
    if size != entry.size:
        return f"{size} bytes, the manifest says {entry.size}"
    return "" if sha256_of(local) == entry.sha256 else "bytes differ from the manifest's sha256"


def done_path(name: str, rank: int) -> str:
    """Where a rank says that its files of a checkpoint are whole."""
    return f"{FOLDER}/{name}/done-{rank:05d}.json"


def commit(out: Storage, manifest: Manifest) -> None:
    """Write the manifest: from here on the checkpoint exists. Raises AlreadyExistsError."""
    out.create(manifest_path(manifest), to_json(manifest.model_dump(mode="json")))


def retired(manifests: Sequence[Manifest], policy: Policy, leases: Sequence[int]) -> list[Manifest]:
    """Checkpoints that retention removes; the newest ``keep_last`` resumable ones always stay."""
    chain = resumable(manifests, leases)
    kept = {m.name for m in chain[: policy.keep_last]}
    if policy.keep_every_steps:
        kept |= {m.name for m in chain if m.step % policy.keep_every_steps == 0}
    return [m for m in manifests if m.name not in kept and m.lease_n in leases]


def retire(
    out: Storage, policy: Policy, leases: Sequence[int], passed: Callable[[str], None]
) -> None:
    """Apply retention, and remove what earlier attempts began and never committed."""
    manifests = committed(out)
    gone = {m.name for m in retired(manifests, policy, leases)} | _abandoned(out, manifests, leases)
    for name in sorted(gone):
        passed("retire.begin")
        # The manifest first: a checkpoint that is half removed must not look whole.
        out.delete(f"{FOLDER}/{name}/{MANIFEST}")
        passed("retire.manifest")
        for path in out.list(f"{FOLDER}/{name}"):
            out.delete(path)
            passed("retire.file")
        passed("retire.end")


def skipped(out: Storage) -> frozenset[int]:
    """Positions of the training order that earlier attempts found to give no finite loss."""
    names = [name for name in out.children(NOTES) if name.startswith("skips-")]
    return frozenset(p for name in names for p in out.read_json(f"{NOTES}/{name}")["positions"])


def note_skips(out: Storage, positions: Sequence[int], **why: Any) -> None:
    """Put positions on the skip list, durably."""
    number = sum(name.startswith("skips-") for name in out.children(NOTES)) + 1
    out.create_json(f"{NOTES}/skips-{number:04d}.json", {"positions": list(positions), **why})


def curves_id(out: Storage) -> str:
    """By what trackers know this training, whichever run or attempt works on it, wherever."""
    with suppress(AlreadyExistsError):
        out.create_json(_CURVES, {"id": secrets.token_hex(8)})
    return str(out.read_json(_CURVES)["id"])


def _abandoned(out: Storage, manifests: Sequence[Manifest], leases: Sequence[int]) -> set[str]:
    """Folders without a manifest, of attempts before this one: their writers were fenced off."""
    whole = {m.name for m in manifests}
    matches = [match for name in out.children(FOLDER) if (match := _NAME.match(name))]
    return {m[0] for m in matches if m[0] not in whole and int(m[2]) < max(leases, default=0)}


def _read(out: Storage, name: str) -> Manifest | None:
    path = f"{FOLDER}/{name}/{MANIFEST}"
    try:
        return Manifest.model_validate(out.read_json(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CorruptError(
            f"{out.url}/{path}: is no checkpoint's manifest; remove its folder"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
