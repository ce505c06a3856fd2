"""The variable of CUDA that Megatron insists on for some runs."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Final

from nca_plugin.errors import NCAPluginError

_CONNECTIONS: Final = "CUDA_DEVICE_MAX_CONNECTIONS"
#: Blackwell, the first architecture that overlaps communication and computation without this limit.
_NEEDS_NO_LIMIT: Final = 10


def limit_connections(args: Namespace) -> str | None:
    """Set CUDA_DEVICE_MAX_CONNECTIONS if Megatron needs it for this run and the user has not set it.

    Args:
        args: Megatron-LM's parsed arguments.

    Returns:
        The setting, as `NAME=value`; None if nothing was set.

    Raises:
        NCAPluginError: if the user has set a value that Megatron refuses.
    """
    is_parallel = args.tensor_model_parallel_size > 1 or args.context_parallel_size > 1
    # If the layout comes from a checkpoint, it is not known yet.
    if not is_parallel and not args.use_mp_args_from_checkpoint_args:
        return None
    if args.use_torch_fsdp2 or args.use_megatron_fsdp or args.overlap_moe_expert_parallel_comm:
        # These need more than one connection.
        return None
    given = os.environ.get(_CONNECTIONS)
    if given == "1":
        return None
    # This comes before the device is queried, because CUDA reads the variable when it starts.
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
    """Return the major compute capability of the device that Megatron looks at."""
    import torch

    return int(torch.cuda.get_device_properties("cuda:0").major)
