#!/usr/bin/env bash
# For a machine without a package index: fetch into .gpu/wheels, which git ignores, what its image lacks. Call it where pip
# has an index, and carry .gpu beside the tree.
#
#   bash scripts/gpu/fetch_wheels.sh
#
# PYTHON     the interpreter whose pip is used (python3); the wheels are for Python 3.12 on Linux, x86-64
# LIMIT_MIB  if set: fail where the tree and .gpu together are larger
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

rm -rf .gpu/wheels
mkdir -p .gpu/wheels
echo '*' >.gpu/.gitignore

# At the versions of constraints.txt, for an image with torch, numpy, numba, transformers, tensorboard, typer and the like:
# name here what yours lacks. run.sh installs with --no-deps, so what these need is named too (hydra: antlr4, omegaconf;
# datasets: dill, multiprocess).
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --dest .gpu/wheels \
  megatron-core==0.19.2 datasets==5.2.0 hydra-core==1.3.8 omegaconf==2.3.1 dill==0.4.1 multiprocess==0.70.19
# It is there as source only: built here, pure Python.
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir .gpu/wheels antlr4-python3-runtime==4.9.3

tree=$(git ls-files -z --cached --others --exclude-standard | du -bc --files0-from=- 2>/dev/null | tail -1 | cut -f1)
mib=$((($(du -sb .gpu | cut -f1) + tree + 1048575) / 1048576))
echo ".gpu and the tree: $mib MiB"
if [ "$mib" -gt "${LIMIT_MIB:-$mib}" ]; then
  echo "more than $LIMIT_MIB MiB: put a smaller corpus into .gpu/corpus" >&2
  exit 1
fi
