#!/usr/bin/env bash
# A dataset written by several nodes, each a part of it. On every node, in the environment of nca-plugin:
#
#   scripts/generate_torchrun.sh nca://web 10B /shared/web --nnodes 4 --rdzv-backend c10d --rdzv-endpoint node0:29500
#
# What follows the name of the dataset is for torchrun. Killed anywhere and run again, it continues. Then, on one node:
#
#   nca-plugin merge --out /shared/web && nca-plugin verify /shared/web
set -euo pipefail
source=$1 tokens=$2 out=$3
shift 3
exec torchrun --nproc-per-node 1 "$@" --no-python bash -c \
    'exec nca-plugin generate "$0" --tokens "$1" --out "$2" --shard "$((RANK + 1))/$WORLD_SIZE"' \
    "$source" "$tokens" "$out"
