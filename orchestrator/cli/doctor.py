"""``orchestrator doctor``: check this machine and the cluster."""

from __future__ import annotations

import argparse
import sys

from orchestrator.cli.arguments import add_cluster
from orchestrator.control.cluster_choice import choose_cluster
from orchestrator.control.doctor import examine
from orchestrator.spec.loader import load_cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[--cluster F]."""
    add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Print every check; 1 when one fails. ``none``: not here, and only some recipes need it."""
    cluster_file, why = choose_cluster(options.cluster, None)
    print(f"cluster: {cluster_file} ({why})", file=sys.stderr)
    failed = 0
    for check in examine(load_cluster(cluster_file)):
        failed += not check.passed and not check.is_optional
        verdict = "ok  " if check.passed else "none" if check.is_optional else "FAIL"
        print(f"{verdict}  {check.name}: {check.detail}")
    return 1 if failed else 0
