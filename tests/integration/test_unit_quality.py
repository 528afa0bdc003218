"""Units judged by phone times, as a user asks for it: real speech synthesis states the phones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.unit_quality import SENTENCES, VOICES, speak
from tests.smoke import ROOT, Smoke

RECIPE = {
    "extends": str(ROOT / "recipes/smoke.yaml"),
    "name": "judged",
    "corpus": {"sources": [{"name": "said", "adapter": "folder", "language": "from_folder"}]},
    "encoder": {
        "layer": 2,
        "pretrain": None,
        "model": "hubert-demo",
        "sha256": "1cf494b44faee112ef8f57ebe700cec3253134ad0923128fc1f3d050d60c5c05",
    },
    "tokenizer": {"num_clusters": 20, "fit_hours": 1},
    "evaluate": {"unit_quality": {"alignments": "phones"}},
    "sweep": {},
}


@pytest.mark.skipif(not shutil.which("festival"), reason="needs festival")
def test_units_are_judged_by_what_is_said(tmp_path: Path) -> None:
    speak(tmp_path / "flat", VOICES, SENTENCES[:6])
    for file in (tmp_path / "flat").glob("*-0*"):
        kind = {".wav": "speech", ".lab": "phones"}[file.suffix]
        to = tmp_path / kind / "en" / file.name.rpartition("-")[0] / file.name
        to.parent.mkdir(parents=True, exist_ok=True)
        file.rename(to)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    smoke = Smoke.create(
        tmp_path / "smoke",
        tmp_path / "material",
        data={"said": str(tmp_path / "speech"), "phones": str(tmp_path / "phones")},
        models={
            "hubert-demo": str(ROOT / "recipes/assets/hubert-demo"),
            "smoke-lm": str(tmp_path / "material/lm"),
        },
    )
    words = (str(tmp_path / "r.yaml"), "--until", "unit_quality")
    smoke.orchestrator("submit", *words, "--watch")
    (found,) = (smoke.folder / "store/artifacts/unit_quality").glob("*/quality.json")
    quality = json.loads(found.read_text())
    assert quality["num_recordings"] == 12
    for features in ("units", "mfcc"):
        assert 0.1 < quality[features]["pnmi"] < 0.9
        assert 0 <= quality[features]["abx_across"] < 0.4
    assert 0.05 < quality["codebook"]["unexplained_variance"] < 0.8
    (page,) = smoke.folder.glob("store/runs/*/report.html")
    assert "What units tell of phones" in page.read_text()

    # Phone times that are edited are judged by again; nothing else is done again.
    one = next((tmp_path / "phones").rglob("*.lab"))
    one.write_text(one.read_text().replace(" ih\n", " iy\n"))
    plan = smoke.orchestrator("plan", *words, "--json").stdout
    decisions = {i["node"]: i["decision"] for i in json.loads(plan)["instances"]}
    assert decisions.pop("unit_quality") == "run"
    assert set(decisions.values()) == {"reuse"}
