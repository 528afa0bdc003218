"""Units as files for other trainers: `orchestrator export` runs this where Parquet can be read.

In: a finished tokenize artifact, whose digests are checked. Out: a new folder with the three splits
in one of `unit_formats`, as the run's own training holds them out, and ``export.json``, which says
where they come from. The folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.lm.splits import GROUP_COLUMNS, SPLITS, SplitName, deal_out, groups_of, used_groups
from jobs.unit_formats import FORMATS, SplitFiles, UtteranceUnits
from jobs.unit_shards import UsedRows, shard_paths
from orchestrator.errors import (
    CorruptError,
    ExitCode,
    OrchestratorError,
    RequestError,
    os_words,
)
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.new_folder import new_folder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import sha256_of, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.spec.recipe import Recipe, Split

_COLUMNS = ["id", "recording", "units", "durations", "num_samples"]
ABOUT = "export.json"


def export(run: RunFolder, store: Store, instance: Instance, form: str, to: Path) -> None:
    """Write the folder ``to``.

    Raises RequestError for what is not finished or a folder that is there, CorruptError for a shard
    that is not what the artifact's manifest says.
    """
    units = store.artifact(instance.stage, instance.key)
    if not units.is_complete():
        raise RequestError(
            f"{instance.id}: not finished; `orchestrator resume {run.name}` goes on with it"
        )
    recipe = _recipe_of(run, instance)
    with new_folder(to, "--units") as folder:
        written = _write(units, recipe, form, folder)
        about = {
            "run": run.storage.url,
            "artifact": units.storage.url,
            "key": instance.key,
            "format": form,
            "num_units": recipe.tokenizer.num_clusters,
            "deduplicated": recipe.tokenizer.deduplicate,
            "encoder": recipe.encoder.model or "pretrained by the recipe",
            "layer": recipe.encoder.layer,
            "output": recipe.encoder.output,
            **written,
        }
        (folder / ABOUT).write_bytes(to_json(about))


def _recipe_of(run: RunFolder, instance: Instance) -> Recipe:
    """The recipe of the variants that need the units. Raises RequestError when their splits differ.

    A version of the tool that splits otherwise has another pack stage, not other units.
    """
    recipes = [v.recipe for v in run.variants() if v.name in instance.variants]
    if any(recipe.split != recipes[0].split for recipe in recipes):
        raise RequestError(
            f"{instance.id}: its variants split the recordings differently; export from a run of "
            "one of them: submit with `--until tokenize` and the `split` that you want"
        )
    return recipes[0]


def _write(units: Artifact, recipe: Recipe, form: str, folder: Path) -> dict[str, Any]:
    """Write all splits; how much there is of each."""
    counts = {name: Counter(num_utterances=0, num_tokens=0, num_samples=0) for name in SPLITS}
    num_empty = num_thinned = 0
    with ExitStack() as stack:
        files: dict[SplitName, SplitFiles] = {}
        for name in SPLITS:
            files[name] = FORMATS[form](folder, name, recipe.tokenizer.num_clusters)
            stack.callback(files[name].close)
        for utterance, code in _dealt(units, recipe.split, folder.parent):
            if not len(utterance.units_L):
                num_empty += 1
                continue
            if code < 0:
                num_thinned += 1
                continue
            split = SPLITS[code]
            files[split].add(utterance)
            counts[split].update(
                num_utterances=1,
                num_tokens=len(utterance.units_L),
                num_samples=utterance.num_samples,
            )
    left_out = {"num_empty_utterances": num_empty, "num_thinned_utterances": num_thinned}
    return {"splits": counts, **left_out}


def _dealt(units: Artifact, shares: Split, cache: Path) -> Iterator[tuple[UtteranceUnits, int]]:
    """All utterances, in shard order, with the number of their split; -1 for none."""
    deal = deal_out(shares, used_groups(tables_of(units, cache / "dealt"), shares.by))
    for table in tables_of(units, cache / "shards"):
        codes = deal.codes(groups_of(table, shares.by))
        yield from zip(_rows(table), codes.tolist(), strict=True)


def tables_of(units: Artifact, cache: Path) -> Iterator[pa.Table]:
    """The used rows of a tokenize artifact, shard by shard. Raises CorruptError.

    Copies of what a remote store holds are kept in ``cache`` while they are read.
    """
    digests = {path: entry["sha256"] for path, entry in units.manifest()["files"].items()}
    rows = UsedRows.of(units.storage)
    for path in shard_paths(digests):
        local = _fetched(units, path, cache)
        if sha256_of(local) != digests[path]:
            raise CorruptError(
                f"{units.storage.url}/{path}: bytes differ from the manifest's sha256; "
                "`orchestrator verify` names all that do"
            )
        yield rows.read(local, [*_COLUMNS, *GROUP_COLUMNS])
        if units.storage.local_root is None:
            local.unlink()


def _fetched(units: Artifact, path: str, cache: Path) -> Path:
    try:
        local = units.storage.fetch(path, cache)
        local.stat()
    except FileNotFoundError:
        raise CorruptError(
            f"{units.storage.url}/{path}: missing; `orchestrator verify` names all that are"
        ) from None
    return local


def _rows(table: pa.Table) -> Iterator[UtteranceUnits]:
    for batch in table.to_batches():
        columns = [batch.column(name) for name in _COLUMNS]
        for row in range(batch.num_rows):
            name, recording, units, durations, num_samples = (c[row] for c in columns)
            yield UtteranceUnits(
                id=name.as_py(),
                recording=recording.as_py(),
                units_L=units.values.to_numpy(),
                durations_L=durations.values.to_numpy(),
                num_samples=num_samples.as_py(),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Export the units of one stage instance; says in one line why it cannot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--instance", required=True, help="id of the stage instance")
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--to", required=True, type=Path, help="folder to be made")
    options = parser.parse_args(argv)
    try:
        store = Store.open(options.store)
        run = RunFolder(store.run_storage(options.run))
        instance = run.plan().instance(options.instance)
        export(run, store, instance, options.format, options.to)
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{os_words(error)}\n")
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
