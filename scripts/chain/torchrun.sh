#!/usr/bin/env bash
# A chain on one machine or on several. On every machine, in the environment of nca-plugin:
#
#   scripts/chain/torchrun.sh demo --standalone --nproc-per-node 8
#   scripts/chain/torchrun.sh demo --nnodes 4 --nproc-per-node 8 --rdzv-endpoint node0:29500 --max-restarts 3
#
# What has the form of folder=/shared/chain, and what follows --, overrides the chain's file; the rest is for torchrun.
#
# Killed anywhere and run again, it continues. SIGUSR1 and SIGTERM have it save and end. Exit code 0: the chain is
# complete; 75: it was stopped in order, run it again; anything else: it failed.
set -uo pipefail
chain=$1
shift
options=() overrides=() before=
while (($#)) && [[ $1 != -- ]]; do
    # Of torchrun's options, one alone takes values of this form.
    if [[ $1 != -* && $1 == *=* && $before != --rdzv[-_]conf ]]; then
        overrides+=("$1")
    else
        options+=("$1")
    fi
    before=$1
    shift
done
(($#)) && shift
set -- "${overrides[@]}" "$@"

# Each start's ranks meet at an address of their own, also after the machine that served the last one is gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun --rdzv-backend c10d "${options[@]}" -m nca_plugin.chain "$chain" "$@" &
torchrun=$!
trap 'asked=1; nca-plugin chain "$chain" --stop "$@"' USR1 TERM

# A signal ends `wait`, not torchrun: then wait again.
while :; do
    asked=0
    code=0
    wait "$torchrun" || code=$?
    ((asked)) || break
done
((code == 0)) || exit "$code"
nca-plugin chain "$chain" --is-complete "$@"
