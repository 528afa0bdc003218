#!/usr/bin/env bash
# Debian packages the tests use, and what for. Asks for root only when something is missing.
set -euo pipefail

packages=(
  chromium              # tests/browser: opens the report page
  espeak-ng             # speaks suites made here (recipes/suite_material.py)
  festival              # speaks test material with exact phone times (benchmarks/unit_quality.py)
  festvox-kallpc16k     # its first voice
  festvox-kdlpc16k      # its second voice
  slurmctld             # tests/slurm: the controller of a real cluster
  slurmd                # its nodes
  slurm-client          # sbatch, squeue, sacct, scontrol, scancel, sinfo, srun
  munge                 # how its daemons trust each other, with a key of the cluster's own
  slurmdbd              # its accounting, which sacct reads
  mariadb-server-core   # where the accounting lies; the server alone, no service
  mariadb-client-core   # mariadb-install-db makes the empty database with it
  iproute2              # network namespaces: every node has an address of its own
  faketime              # tests/integration/test_clocks.py: a process whose clock is set while it runs
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}"
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
