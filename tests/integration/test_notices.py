"""A real run that is done, and what its people were told; `notices.py` has one with a past."""

from __future__ import annotations

import os

import pytest
import yaml

from tests.integration.notices import wait_for
from tests.receiver import receiving
from tests.smoke import Smoke

pytestmark = pytest.mark.slow


def test_a_run_that_is_done_says_how_well(calm: tuple[Smoke, str]) -> None:
    smoke, _ = calm
    cluster = smoke.folder / "cluster.yaml"
    before = cluster.read_text()
    with receiving() as receiver:
        told = Smoke(smoke.folder, {**os.environ, "HOOK": receiver.url})
        notify = {"notify": {"webhook": "${env:HOOK}"}}
        try:
            cluster.write_text(yaml.safe_dump({**yaml.safe_load(before), **notify}))
            run = told.submit("--name", "told")
            wait_for(lambda: receiver.told == ["done"])
        finally:
            cluster.write_text(before)
        (done,) = receiver.received
        assert {name: set(scores) >= {"test"} for name, scores in done["scores"].items()} == {
            "init=twist": True, "init=cold": True,
        }  # fmt: skip
        assert done["report"] == f"{smoke.folder}/store/runs/{run}/report.html"
        assert "test perplexity" in done["text"]
