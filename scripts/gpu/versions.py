"""Print the versions that a result is to be reported with, and whether torch.compile works; fail without a device."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

_NAMES = ("torch", "megatron-core", "numpy", "numba", "transformers", "nca-plugin")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on PYTHONPATH, or what no part of the run needs
        return "-"


def main() -> None:
    has_cuda = torch.cuda.is_available()
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"])
    versions = " ".join(f"{name}={_version(name)}" for name in _NAMES)
    device = torch.cuda.get_device_name().replace(" ", "-") if has_cuda else "none"
    print(f"PY {sys.version.split()[0]} {versions} cuda={has_cuda} device={device} cores={os.cpu_count()}")
    # Compiling takes a CPU a minute: a rehearsal goes without the question.
    if os.environ["DRY"] == "1":
        return
    if not has_cuda:
        sys.exit("no CUDA device: nothing else is run; DRY=1 is a rehearsal without one")
    try:
        # Megatron compiles its fused functions: a Triton or a gcc that is broken would end every run.
        torch.compile(lambda x: torch.nn.functional.silu(x) * 2)(torch.ones(8, device="cuda"))
        print("torch.compile works")
    except Exception as error:  # whatever it is, the runs can do without
        print(f"torch.compile fails, and is switched off: {type(error).__name__} {error}".splitlines()[0])


if __name__ == "__main__":
    main()
