"""JSON Schemas of recipes and clusters, generated from the models, so that editors check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.spec.cluster import Cluster
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Recipe

FILES: dict[str, type[Spec]] = {
    "recipes/recipe.schema.json": Recipe,
    "cluster_configs/cluster.schema.json": Cluster,
}


def schema_text(path: str) -> str:
    """The schema that belongs into one of `FILES`."""
    schema: dict[str, Any] = FILES[path].model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Another file, relative to this one, whose values this one overrides; "
        "relative paths in it count from this one's folder.",
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in FILES:
        Path(name).write_text(schema_text(name), encoding="utf-8")
