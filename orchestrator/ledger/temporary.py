"""A folder of this machine for what belongs into no store."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orchestrator.errors import RequestError


def own_temporary_folder(base: str = "") -> Path:
    """A folder for temporary files that no other user of this machine can write to.

    It lies in ``base``, by default where the system wants such files. Raises RequestError when
    somebody else has made it first.
    """
    base = base or os.environ.get("TMPDIR") or tempfile.gettempdir()
    folder = Path(base, f"orchestrator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise RequestError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of yours")
    return folder
