"""Whether runs could be done with their arguments, found out before the first one is started.

    python -m nca_plugin.launch.check < ARGUMENTS.json

parses Megatron-LM's arguments as the runs will, and prints what follows from them.
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
from nca_plugin.launch.process import PARENT, check_training_loop, die_with_torchrun
from nca_plugin.megatron import device

#: What the rows of an embedding follow from: arguments of Megatron-LM, and fields of a transition.
SIZES: Final = ("vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size")
#: In bf16 training without the distributed optimizer, which Megatron assumes.
_BYTES_PER_PARAMETER: Final = 18


@dataclass(frozen=True)
class ArgumentSet:
    """The arguments of a run.

    Attributes:
        options: Megatron-LM's.
        unset: options that the user names to leave them out; they have to exist all the same.
        is_hydra: whether the user writes them as Hydra's overrides.
        freeze: selectors of what the run is not to train.
    """

    options: Sequence[str]
    unset: Sequence[str] = ()
    is_hydra: bool = False
    freeze: Sequence[str] = ()


def check_argument_sets(runs: Sequence[ArgumentSet], world_size: int) -> list[dict[str, Any]]:
    """Return what follows from the arguments of each run, done by as many ranks as `world_size`.

    Takes some seconds: Megatron is imported, in a process of its own.

    Returns:
        For each: `vocab_size`, `make_vocab_size_divisible_by`, `tensor_model_parallel_size`, the embedding's `rows`,
        and, as Megatron counts them, `flops_per_token` of a training step and `parameters`, None for a hybrid model; or
        the `error`.

    Raises:
        NCAPluginError: the process ended without a result.
    """
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), PARENT: str(os.getpid())}
    # With NVML, looking for a GPU does not keep the processes that are forked afterwards from using it.
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
    """Check the arguments of runs, each in a process of its own: Megatron parses arguments once in a process."""
    # Before the first fork, because it takes seconds.
    is_cpu_mode = device.prepare()
    import megatron.training.training  # noqa: F401
    import torch

    import nca_plugin.megatron.dataset_provider  # noqa: F401

    if not is_cpu_mode and len(runs) > 1 and torch.cuda.is_initialized():
        # Transformer Engine's import may have done it, and CUDA does not work after a fork.
        outcomes = [_checked([run], dict(os.environ))[0] for run in runs]
    elif len(runs) == 1:
        outcomes = [_outcome(runs[0])]
    else:
        outcomes = [_in_a_process(run) for run in runs]
    print(json.dumps(outcomes))


def _outcome(run: dict[str, Any]) -> dict[str, Any]:
    """Return what follows from the arguments of a run, or the `error`."""
    try:
        return _sizes(run)
    except NCAPluginError as error:
        return {"error": str(error)}
    # Megatron asserts, and ends the process.
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
    # Of a tokenizer of its own, Megatron keeps the padded number of ids alone.
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
    """Return how many parameters a model has, from the memory that Megatron says it takes on one rank."""
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
