"""Checks the arguments of several runs before the first one is started.

    python -m nca_plugin.launch.check < ARGUMENTS.json

parses Megatron-LM's arguments as the runs will, and prints the sizes that follow from them.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from nca_plugin import launch
from nca_plugin.errors import NCAPluginError, one_line, require
from nca_plugin.launch.process import check_training_loop, die_with_torchrun
from nca_plugin.megatron import cpu_mode
from nca_plugin.this_rank import PARENT

#: The sizes that decide the number of embedding rows. They are arguments of Megatron-LM and fields of a transition.
SIZES: Final = ("vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size")
#: What Megatron counts for a parameter in bf16 training without the distributed optimizer.
_BYTES_PER_PARAMETER: Final = 18


@dataclass(frozen=True)
class ArgumentSet:
    """The arguments of a run.

    Attributes:
        options: Megatron-LM's arguments.
        unset: options that the user names to leave them out. Unknown ones are refused too.
        is_hydra: whether the user writes the options as Hydra's overrides.
        freeze: selectors of what the run shall not train.
    """

    options: Sequence[str]
    unset: Sequence[str] = ()
    is_hydra: bool = False
    freeze: Sequence[str] = ()


def check_argument_sets(runs: Sequence[ArgumentSet], world_size: int) -> list[dict[str, Any]]:
    """Return the sizes that follow from the arguments of each run on `world_size` ranks.

    This takes some seconds, because it imports Megatron in a process of its own.

    Returns:
        For each run: the `SIZES`, the embedding's `rows`, and, as Megatron counts them, `flops_per_token` of a training
        step and `parameters`, None for a hybrid model. Only the `error` if the arguments are wrong.

    Raises:
        NCAPluginError: if the process ends without a result.
    """
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), PARENT: str(os.getpid())}
    # With NVML, PyTorch looks for a GPU without initialising CUDA, so that forked processes can still use it.
    environment = {**os.environ, **ranks, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    return _checked([asdict(run) for run in runs], environment)


def _checked(runs: list[dict[str, Any]], environment: dict[str, str]) -> list[dict[str, Any]]:
    require("torch", "megatron.core")
    check_training_loop()
    command = [sys.executable, "-m", launch.CHECK]
    done = subprocess.run(command, input=json.dumps(runs), capture_output=True, text=True, env=environment)
    try:
        outcomes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NCAPluginError(f"the runs' arguments could not be checked: {last}") from None
    return outcomes


def main(runs: list[dict[str, Any]]) -> None:
    """Check the arguments of each run in its own process, because Megatron parses arguments only once in one."""
    # These imports take seconds, so they come before the first fork.
    is_cpu_mode = cpu_mode.prepare()
    import megatron.training.training  # noqa: F401
    import torch

    import nca_plugin.megatron.dataset_provider  # noqa: F401

    if not is_cpu_mode and len(runs) > 1 and torch.cuda.is_initialized():
        # Importing Transformer Engine may initialise CUDA, which then does not work after a fork.
        outcomes = [_checked([run], dict(os.environ))[0] for run in runs]
    elif len(runs) == 1:
        outcomes = [_outcome(runs[0])]
    else:
        outcomes = [_in_a_process(run) for run in runs]
    print(json.dumps(outcomes))


def _outcome(run: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes that follow from the arguments of a run, or the `error`."""
    try:
        return _sizes(run)
    except NCAPluginError as error:
        return {"error": str(error)}
    # Megatron raises AssertionError or ends the process with SystemExit.
    except BaseException as error:
        return {"error": one_line(error) or type(error).__name__}


def _in_a_process(run: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(_outcome(run)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.wait()
    return json.loads(content or b'{"error": "its process ended without a word"}')


def _sizes(run: dict[str, Any]) -> dict[str, Any]:
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training.training import num_floating_point_operations

    from nca_plugin.launch.configuration import key_of
    from nca_plugin.launch.megatron import check_frozen_layers, parsed

    args = parsed(run["options"], key_of if run["is_hydra"] else str, run["unset"], is_run=False)
    if args.ckpt_format not in ("torch_dist", "torch"):
        raise NCAPluginError(f"--ckpt-format {args.ckpt_format}: a transition reads torch_dist and torch only")
    check_frozen_layers(args, run["freeze"])
    # For some tokenizers, Megatron's arguments have only the padded vocabulary size.
    vocab_size = args.vocab_size or build_tokenizer(args).vocab_size
    sizes = {name: getattr(args, name) for name in SIZES}
    flops = num_floating_point_operations(args, args.global_batch_size) / (args.global_batch_size * args.seq_length)
    return {
        **sizes,
        "vocab_size": vocab_size,
        "rows": args.padded_vocab_size,
        "flops_per_token": flops,
        "parameters": _num_parameters(args),
    }


def _num_parameters(args: Any) -> int | None:
    """Return the number of parameters of a model, from Megatron's estimate of its memory on a single rank."""
    from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

    if args.hybrid_layer_pattern is not None:
        return None
    alone = copy.copy(args)
    for name in ("tensor", "pipeline", "expert"):
        setattr(alone, f"{name}_model_parallel_size", 1)
    alone.expert_tensor_parallel_size, alone.use_distributed_optimizer = 1, False
    return round(compute_weight_and_optimizer_memory(alone) / _BYTES_PER_PARAMETER)


if __name__ == "__main__":
    die_with_torchrun()
    main(json.load(sys.stdin))
