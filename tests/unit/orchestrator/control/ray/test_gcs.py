"""What a head is asked; that it answers needs a Ray cluster (a drill, `autoscaling.py`)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.control.ray.gcs import Gcs


def test_ray_is_imported_at_the_first_question() -> None:
    code = "import sys, orchestrator.control.ray.gcs; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_address_of_no_head_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="no address"):
        Gcs("no address")
