"""A launcher on a machine without a GPU that takes it for one with a Hopper GPU: `fake_cuda.py LAUNCHER ARGUMENTS`.

CUDA is mapped to the CPU as in CPU mode, but behind the back of the launcher, one of `nca_plugin.launch`, which then
does what it does on CUDA. Transformer Engine and Apex are as they are in this environment.
"""

import functools
import os
import runpy
import sys
from typing import Any

#: Compute capability.
HOPPER = (9, 0)


def install() -> None:
    """Let torch say that there is a GPU. Call before anything of Megatron is imported."""
    import torch

    from nca_plugin.megatron import cuda_on_cpu

    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    cuda_on_cpu.enable()
    # What CPU mode sets, the launcher has to.
    del os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
    if connections is not None:
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = connections
    properties = torch.cuda.get_device_properties

    @functools.wraps(properties)
    def of_hopper(*arguments: Any) -> Any:
        found = properties(*arguments)
        found.name, (found.major, found.minor) = "a GPU that is none", HOPPER
        return found

    torch.cuda.get_device_properties = of_hopper  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: HOPPER  # type: ignore[assignment]


if __name__ == "__main__":
    install()
    launcher = sys.argv.pop(1)
    import quick_saves

    quick_saves.install()
    runpy.run_module(f"nca_plugin.launch.{launcher}", run_name="__main__", alter_sys=True)
