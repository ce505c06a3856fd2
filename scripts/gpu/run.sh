#!/usr/bin/env bash
# Measure the plugin on one GPU within a given time: see README.md beside this file.
#
#   PARTS=abcd TOTAL=450 bash scripts/gpu/run.sh
#
# PARTS    a tests, b tokens a second, c CPU against GPU, d transfer and resume, e study, f scan of stage 1 (abcd)
# TOTAL    seconds for all of it; a part that takes too long is ended, so that the summary is always written (450)
# PYTHON   the interpreter whose packages are used (python3)
# OUT      an empty folder for the results (a new one below /tmp)
# CARRIED  folder with wheels/ and corpus/, if there are any (.gpu)
# DRY=1    a tiny rehearsal on the CPU
set -u

KIT=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$KIT/../.." && pwd)
PARTS=${PARTS:-abcd} TOTAL=${TOTAL:-450}
PYTHON=$(realpath --no-symlinks "$(command -v "${PYTHON:-python3}")")
export DRY=${DRY:-0} CARRIED OUT WORK
CARRIED=$(realpath -m "${CARRIED:-$ROOT/.gpu}")
OUT=$(realpath -m "${OUT:-$(mktemp -d /tmp/nca-plugin-gpu.XXXX)}")
WORK=$(mktemp -d /tmp/nca-plugin-gpu-work.XXXX)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" "$WORK/logs"
cd "$WORK" || exit 1
: >parts

[[ $PARTS =~ ^[a-f]+$ ]] || {
  echo "PARTS=$PARTS: letters from a to f" >&2
  exit 2
}
has() { [[ $PARTS == *[$1]* ]]; }
left() { echo $((TOTAL - SECONDS)); }

# At most $1 seconds, and $2 are left to what comes after; a rehearsal's machine is slow.
cap() {
  local most=$1 now=$(($(left) - $2))
  [ "$DRY" = 1 ] && most=$((most * 4))
  [ "$now" -lt "$most" ] && most=$now
  echo $((most > 5 ? most : 5))
}

# Run a part: name, seconds, command. Its failure is noted, and does not stop the others.
part() {
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  timeout -k 5 "$seconds" "$@" >"logs/$name.log" 2>&1
  local rc=$?
  echo "$name rc=$rc $((SECONDS - began)) s of $seconds" | tee -a parts
  return $rc
}

# One machine, which need not have a network: what talks, talks over the loopback, and its own name must be known.
getent hosts "$(hostname)" >/dev/null || [ ! -w /etc/hosts ] || echo "127.0.0.1 $(hostname)" >>/etc/hosts
export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# Small functions, compiled by up to a dozen runs side by side: no pool of processes for each of them.
export TORCHINDUCTOR_COMPILE_THREADS=1 NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$WORK/numba}

# The tree is what is measured, whatever is installed. It is copied, because pip writes into what it builds; --no-deps,
# because the environment is taken as it is, but for the wheels that were carried.
mkdir source
(cd "$ROOT" && cp -r nca_plugin conf setup.cfg pyproject.toml README.md LICENSE "$WORK/source/")
shopt -s nullglob
part install "$(cap 60 10)" "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile \
  --no-cache-dir --target site "$CARRIED"/wheels/*.whl ./source || {
  tail -5 logs/install.log
  exit 1
}

"$PYTHON" -m nca_plugin doctor >logs/doctor.log 2>&1 &
part versions "$(cap 90 10)" "$PYTHON" "$KIT/versions.py"
versions=$?
wait
grep -E "^(PY|torch.compile)" logs/versions.log
if [ "$versions" != 0 ]; then
  tail -1 logs/versions.log
  exit 1
fi
if grep -q "^torch.compile fails" logs/versions.log; then
  export TORCHDYNAMO_DISABLE=1
fi

# ---- a beside c and d: neither fills the GPU, and none of their numbers is a time
if has a; then
  part a-tests "$(cap 240 15)" "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "$ROOT/tests/megatron/test_gpu.py" &
fi
if has cd; then
  part cd-functional "$(cap 240 15)" "$PYTHON" "$KIT/functional.py" "$PARTS"
fi
wait

# ---- b alone, since it is about time; a micro-batch that does not fit leaves the other
if has b; then
  options=(--models 160m) micro_batches="16 4"
  [ "$DRY" = 1 ] && options=(--models tiny --seq-length 256 --blocks 1 --iterations 4) micro_batches=1
  for micro_batch in $micro_batches; do
    part "b-micro-batch-$micro_batch" "$(cap 120 15)" "$PYTHON" "$ROOT/scripts/benchmark_training.py" "${options[@]}" \
      --ranks 1 --micro-batches "$micro_batch" --out "$OUT/bench.jsonl"
  done
fi

# ---- e and f take what is left, alone or half each
if has e; then
  seconds=$(($(left) - 15))
  has f && seconds=$((seconds / 2))
  part e-study "$seconds" "$PYTHON" "$KIT/study.py" "$((seconds - 5))"
  cp study/results.json study/report.html "$OUT/" 2>/dev/null
fi
if has f; then
  seconds=$(($(left) - 12))
  part f-scan "$seconds" "$PYTHON" "$KIT/scan.py" "$((seconds - 5))"
fi

"$PYTHON" "$KIT/summary.py" 2>&1 | tee "$OUT/summary.txt"
tar czf "$OUT/logs.tgz" --exclude=checkpoint --exclude=start --exclude='*.bin' --exclude='*.idx' \
  logs $(ls -d study study.yaml scan 2>/dev/null)
echo "total $SECONDS s of $TOTAL; results are in $OUT"
grep -q "^versions rc=0" "$OUT/summary.txt" && ! grep -q "rc=[^0]" "$OUT/summary.txt"
