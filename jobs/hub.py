"""Models of a hub: one process fetches each once, everybody else reads the store.

<store>/models/<name>-<12 hex digits of name and revision>/
    config.json, weights       as the hub has them
    MANIFEST.json              their sizes and digests; written last

The network is circumstance: a hub that is busy or away is asked again, with longer and longer
pauses up to a deadline, and then ends the attempt in a way that is tried again. What the hub
refuses is a wrong request.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt
from jobs.weights import PICKLED, SAFETENSORS, first_line
from orchestrator.errors import (
    AlreadyExistsError,
    Cause,
    CorruptError,
    RequestError,
    RunFailedError,
    cause_of,
)
from orchestrator.ledger.artifact import MANIFEST, differences
from orchestrator.ledger.records import record_at, understood
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import MODELS
from orchestrator.plan.keys import KEY_DIGITS
from orchestrator.spec.loader import resolve_env

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
DEADLINE_S = 600.0
"""How long a hub that does not answer is asked again within one attempt."""
_MAX_PAUSE_S = 60.0
_PATTERNS = (
    (CONFIG, PREPROCESSOR, "model*.safetensors", f"{SAFETENSORS}.index.json"),
    (CONFIG, PREPROCESSOR, "pytorch_model*.bin", f"{PICKLED}.index.json"),
)
"""What is fetched of a repository: the second only where nothing safer is there."""
_PASSING_STATUSES = frozenset({407, 408, 409, 425, 429})
"""Besides those of the server's own faults. A proxy that asks who we are is the network's."""
_REMEDIES = {
    401: "check the name, and give a token in HF_TOKEN if the model is private",
    403: "accept its licence on the hub with the account of HF_TOKEN",
    404: "check the name and the revision",
    451: "it may not be had from where the node is; use a mirror by HF_ENDPOINT",
}
_AWAY = (
    "check the node's network and proxy, set HF_ENDPOINT to a mirror, or name a local folder in "
    "the cluster's models"
)

log = logging.getLogger(__name__)


def keep(
    attempt: Attempt,
    name: str,
    revision: str | None,
    *,
    sha256: str | None,
    where: str,
    judge: Callable[[Path], None] = lambda _folder: None,
) -> Storage:
    """The folder in the store with a hub's model, fetched now where it is not there yet.

    ``judge`` may refuse what was fetched before it is kept. Raises RequestError for what the hub
    refuses, RunFailedError of the network, CorruptError when the bytes are not those of the
    manifest or of ``sha256``.
    """
    store = Storage(resolve_env(attempt.cluster.store, where="cluster: store"))
    storage = place_of(store, name, revision)
    if not storage.exists(MANIFEST):
        fetched = download(name, revision, where=where, check=attempt.check)
        judge(fetched)
        put(storage, fetched, name, revision)
    files = _whole_files(storage)
    if sha256 and SAFETENSORS not in files:
        weights = ", ".join(sorted(set(files) - {CONFIG, PREPROCESSOR}))
        raise RequestError(
            f"{where}: {name} has its weights in {weights}, which sha256 cannot pin, but in "
            f"{SAFETENSORS} alone; give revision without it"
        )
    found = files.get(SAFETENSORS, {}).get("sha256")
    if sha256 and found != sha256:
        raise CorruptError(
            f"{where}: {SAFETENSORS} of {name} has sha256 {found}, the recipe says {sha256}; "
            "give the digest of the model you mean",
            cause=Cause.BAD_REQUEST,
        )
    return storage


def place_of(store: Storage, name: str, revision: str | None) -> Storage:
    """The folder of a store in which a hub's model is kept."""
    digest = hashlib.sha256(f"{name}@{revision}".encode()).hexdigest()[:KEY_DIGITS]
    return store.at(MODELS, f"{name.replace('/', '--')}-{digest}")


def download(
    name: str,
    revision: str | None,
    *,
    where: str,
    check: Callable[[], None] = lambda: None,
    file: str = "",
    deadline_s: float = DEADLINE_S,
    pause_s: float = 1.0,
) -> Path:
    """A local folder with config and weights of a hub's model; from its cache where they are there.

    ``file``: what of it is wanted instead, by its path. ``check`` is called before each try;
    ``pause_s`` is the first pause, and doubles. Raises RequestError for what the hub refuses or the
    cache lacks offline, OSError of a disk, RunFailedError when the hub was away until the deadline.
    """
    if Path(name).is_absolute():
        raise RequestError(
            f"{where}: {name} cannot be loaded (no such folder); check the path and its mount"
        )
    deadline = time.monotonic() + deadline_s
    while True:
        check()
        try:
            return _with_file(name, revision, file) if file else _snapshot(name, revision, where)
        except Exception as error:  # noqa: BLE001 (what may not pass is raised again)
            reason = _passing_reason(error, f"{where}: {name} cannot be loaded")
            pause_s = max(pause_s, _asked_pause_s(error))
            if time.monotonic() + pause_s > deadline:
                said = f"the hub did not give {name} within {deadline_s:g} s ({reason})"
                raise RunFailedError(f"{where}: {said}; {_AWAY}", cause=Cause.NETWORK) from None
        log.warning("%s: %s; asking again in %g s", name, reason, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def _whole_files(storage: Storage) -> Mapping[str, Mapping[str, Any]]:
    """A kept model's files as its manifest names them; CorruptError when they are others."""
    remedy = f"remove {storage.url}"
    with understood(f"{storage.url}/{MANIFEST}", remedy):
        files: dict[str, dict[str, Any]] = record_at(storage, MANIFEST, remedy)["files"]
        problem = next(differences(storage, files), "")
    if problem:
        raise CorruptError(f"{problem}; {remedy}", cause=Cause.BAD_DATA)
    return files


def put(storage: Storage, folder: Path, name: str, revision: str | None) -> None:
    """Copy a downloaded model into the store, where others may do so too; its manifest last."""
    storage.sweep_old()  # of processes that were killed
    paths = sorted(p for pattern in sum(_PATTERNS, ()) for p in folder.glob(pattern))
    files = {}
    for path in dict.fromkeys(paths):
        digest = storage.upload(path.resolve(), path.name)
        files[path.name] = {"size": path.stat().st_size, "sha256": digest}
    with suppress(AlreadyExistsError):
        storage.create_json(MANIFEST, {"name": name, "revision": revision, "files": files})


def _snapshot(name: str, revision: str | None, where: str) -> Path:
    """One try. Raises RequestError for a repository without weights, and the library's errors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    for patterns in _PATTERNS:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        if any(p for pattern in patterns[2:] for p in folder.glob(pattern)):
            if not (folder / CONFIG).is_file():
                break
            return folder
    raise RequestError(
        f"{where}: {name} at {revision or 'main'} has no {CONFIG} with {SAFETENSORS} or {PICKLED}; "
        "name a model in Hugging Face format"
    )


def _with_file(name: str, revision: str | None, file: str) -> Path:
    """One try for one file; the folder that it lies in by its path. Raises the library's errors."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    path = Path(hf_hub_download(name, file, revision=revision))
    return path.parents[file.count("/")]


def _passing_reason(error: Exception, problem: str) -> str:
    """What an error says that may pass; raises what will not."""
    if isinstance(error, RequestError) or cause_of(error) is not Cause.ERROR:
        raise error
    remedy, reason = _refusal(error), first_line(error)
    if remedy:
        raise RequestError(
            f"{problem} ({reason}); {remedy}, or name a local folder in the cluster's models"
        ) from None
    return reason


def _refusal(error: BaseException) -> str:
    """The remedy of what asking again cannot mend; empty for what may pass."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    for one in _chain(error):
        if isinstance(one, OfflineModeIsEnabled):
            return "unset HF_HUB_OFFLINE, or fill the cache of HF_HOME before"
        if isinstance(one, HfHubHTTPError):
            status = one.response.status_code
            passes = status in _PASSING_STATUSES or status >= 500
            return "" if passes else _REMEDIES.get(status, _REMEDIES[404])
        if isinstance(one, HFValidationError):
            return _REMEDIES[404]
    return ""  # an answer that makes no sense is a proxy's or a login page's


def _asked_pause_s(error: BaseException) -> float:
    """How long the hub asks to be left alone, in seconds, as far as it says."""
    for one in _chain(error):
        said = getattr(getattr(one, "response", None), "headers", {}).get("retry-after", "")
        if said.isdecimal():
            return min(float(said), _MAX_PAUSE_S)
    return 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
