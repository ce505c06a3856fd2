"""What a process does once about the device that Megatron runs on, before Megatron is imported and before CUDA is used.

Importing this takes the standard library only: `nca-plugin doctor` does.
"""

from __future__ import annotations

import functools
import os
from argparse import Namespace
from typing import Final

from nca_plugin.errors import NCAPluginError

_CONNECTIONS: Final = "CUDA_DEVICE_MAX_CONNECTIONS"
#: The first architecture that communicates and computes at the same time without it: Blackwell.
_NEEDS_NO_LIMIT: Final = 10


@functools.cache
def prepare() -> bool:
    """Prepare this process for Megatron, which is imported: call it before anything else imports it.

    Asked again, it changes nothing more: afterwards CUDA is there as far as anyone can tell.

    Returns:
        Whether the process is in CPU mode, because there is no CUDA device.
    """
    # Importing torch takes seconds.
    from nca_plugin.megatron import cpu

    is_cpu_mode = cpu.is_needed()
    if is_cpu_mode:
        cpu.enable()
    # Imports Megatron.
    from nca_plugin.megatron import plain_torch

    plain_torch.complete()
    return is_cpu_mode


def limit_connections(args: Namespace) -> str | None:
    """Set the variable of CUDA that Megatron insists on for some runs, unless the user has set it.

    Args:
        args: Megatron-LM's, parsed.

    Returns:
        What was set, as `NAME=value`; None if nothing was.

    Raises:
        NCAPluginError: the user has set a value that Megatron refuses.
    """
    is_parallel = args.tensor_model_parallel_size > 1 or args.context_parallel_size > 1
    # A checkpoint's layout is not known before it is loaded.
    if not is_parallel and not args.use_mp_args_from_checkpoint_args:
        return None
    if args.use_torch_fsdp2 or args.use_megatron_fsdp or args.overlap_moe_expert_parallel_comm:
        # They want more connections than one.
        return None
    given = os.environ.get(_CONNECTIONS)
    if given == "1":
        return None
    # Before the device is asked, because CUDA reads it when it starts.
    os.environ[_CONNECTIONS] = "1"
    if _architecture() >= _NEEDS_NO_LIMIT:
        _restore(given)
        return None
    if given is not None:
        _restore(given)
        if not is_parallel:
            return None
        raise NCAPluginError(
            f"{_CONNECTIONS}={given}: Megatron insists on 1 for tensor and context parallelism on this device: unset "
            "it, or set it to 1"
        )
    return f"{_CONNECTIONS}=1"


def _restore(given: str | None) -> None:
    if given is None:
        del os.environ[_CONNECTIONS]
    else:
        os.environ[_CONNECTIONS] = given


def _architecture() -> int:
    """Return the first number of the device's compute capability, of the device that Megatron looks at."""
    import torch

    return int(torch.cuda.get_device_properties("cuda:0").major)
