#!/usr/bin/env bash
# A dataset written by the tasks of a SLURM allocation, each a part of it: one task a node, with all its cores.
#
#   salloc --nodes 4 --ntasks-per-node 1 --exclusive scripts/generate_srun.sh nca://web 10B /shared/web
#
# Killed anywhere and run again, with as many tasks as before, it continues.
set -euo pipefail
srun bash -c 'exec nca-plugin generate "$0" --tokens "$1" --out "$2" --shard "$((SLURM_PROCID + 1))/$SLURM_NTASKS"' \
    "$1" "$2" "$3"
nca-plugin merge --out "$3"
nca-plugin verify "$3"
