"""Kill -9 of random parts of an autoscaling Ray cluster under a run: nothing may differ.

``python -m tests.chaos.ray_cluster --kills 20`` prints a line for each run and the totals that
belong into benchmarks/drills.md. The store is in a bucket of a real S3 API. Killed are raylets of
nodes, actors and ranks on them, drivers and supervisors on the head, and the head as a whole, which
is started again and resumes what was interrupted, as the last line of its start-up does.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import boto3
import psutil

from orchestrator.ledger.storage import Storage
from tests.integration.conftest import BUCKET, serving
from tests.integration.test_ray_cluster import on
from tests.ray_head import RayHead, jobs_on_head
from tests.smoke import Smoke

MAX_KILLS_A_RUN = 5
PAUSE_S = (5.0, 40.0)
TIMEOUT_S = 1800.0
CPU = {"resources": {"CPU": 2}, "min_workers": 0, "max_workers": 2}
WORDS = ("--set", "sweep={}", "--set", "corpus.shard_hours=0.001", "--set", "train.steps=400")
ON_HEAD = {"orchestrator.control.ray.supervisor": "supervisor", "-m jobs.": "driver"}


def processes_of(cloud: RayHead, store_url: str) -> dict[str, list[psutil.Process]]:
    """What may be killed alone, by kind."""
    found: dict[str, list[psutil.Process]] = {}
    for node in cloud.nodes():
        with suppress(psutil.Error):
            for process in psutil.Process(node["pid"]).children(recursive=True):
                if process.name() == "raylet":
                    found.setdefault("raylet", []).append(process)
                elif process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                    found.setdefault("actor", []).append(process)
    for process in jobs_on_head(store_url):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for word, kind in ON_HEAD.items():
                if word in command:
                    found.setdefault(kind, []).append(process)
                    break
    return found


def strike(cloud: RayHead, store_url: str, kills: Counter[str], rng: random.Random) -> str:
    """Kill one of a kind that is there and was struck least; which kind it was."""
    there = processes_of(cloud, store_url)
    kinds = [*sorted(there), "head"]
    least = min(kills[kind] for kind in kinds)
    kind = rng.choice([kind for kind in kinds if kills[kind] == least])
    kills[kind] += 1
    if kind == "head":
        cloud.kill()
        cloud.start()
    else:
        with suppress(psutil.NoSuchProcess):
            rng.choice(there[kind]).kill()
    return kind


def await_end(smoke: Smoke, run: str) -> int:
    """Resume where nobody works any more, until all is done; how often that was needed."""
    deadline, resumes = time.monotonic() + TIMEOUT_S, 0
    while (state := smoke.status(run)["state"]) != "succeeded":
        assert time.monotonic() < deadline, smoke.status(run)
        if state == "failed":
            resumes += smoke.orchestrator("resume", run, check=False).returncode == 0
        time.sleep(2)
    return resumes


def once(
    cloud: RayHead,
    smoke: Smoke,
    store_url: str,
    kills: Counter[str],
    rng: random.Random,
    wanted: int,
) -> tuple[list[str], int]:
    """A run with up to so many kills, counted in ``kills``: which, and how often it was resumed."""
    run, killed = smoke.submit(*WORDS), list[str]()
    while len(killed) < wanted:
        time.sleep(rng.uniform(*PAUSE_S))
        if smoke.status(run)["state"] == "succeeded":
            break
        killed.append(strike(cloud, store_url, kills, rng))
        print(f"  {time.strftime('%H:%M:%S')} {killed[-1]}", flush=True)
        if killed[-1] in ("head", "supervisor"):
            smoke.orchestrator("resume", "--interrupted", check=False)
    return killed, await_end(smoke, run)


def drill(
    folder: Path, calm: Mapping[str, str], wanted: int, rng: random.Random
) -> tuple[Counter[str], int]:
    """Kill so often; what was killed, and how many runs ended with other bytes."""
    kills, bad, number = Counter[str](), 0, 0
    cloud = RayHead(folder / "ray", num_cpus=0, node_types={"cpu": CPU}, idle_min=0.3)
    cloud.start()
    try:
        while kills.total() < wanted:
            number += 1
            url, began = f"s3://{BUCKET}/run{number}", time.monotonic()
            smoke = on(cloud, folder / f"run{number}", folder / "material", store=url)
            most = min(MAX_KILLS_A_RUN, wanted - kills.total())
            killed, resumes = once(cloud, smoke, url, kills, rng, most)
            artifacts = Storage(f"{url}/artifacts")
            same = {path: artifacts.digest(path) for path in calm} == calm
            left = jobs_on_head(url)
            bad += not same or bool(left)
            print(
                f"run {number}: {len(killed)} kills ({', '.join(killed)}), {resumes} resumes, "
                f"{time.monotonic() - began:.0f} s, {'same bytes' if same else 'DIFFERENT BYTES'}, "
                f"{len(left)} processes left",
                flush=True,
            )
    finally:
        cloud.stop()
    return kills, bad


def in_bucket(
    folder: Path, act: Callable[[], tuple[Counter[str], int]]
) -> tuple[Counter[str], int]:
    """Act while an S3 server is there that this process's environment leads to."""
    with serving(folder / "s3.log") as variables:
        os.environ.update(variables)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        return act()


def main() -> int:
    """Run the drill; 0 when every run ended with the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raydrill-", dir="/tmp"))
    calm, began = Smoke.create(folder / "calm", folder / "material"), time.monotonic()
    calm.finish(calm.submit(*WORDS))
    print(f"undisturbed, on this machine: {time.monotonic() - began:.0f} s", flush=True)
    rng = random.Random(options.seed)
    kills, bad = in_bucket(folder, lambda: drill(folder, calm.fingerprint(), options.kills, rng))
    by_kind = ", ".join(f"{kind} {number}" for kind, number in sorted(kills.items()))
    print(f"kills: {kills.total()} ({by_kind})")
    print(f"runs that ended differently: {bad}")
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
