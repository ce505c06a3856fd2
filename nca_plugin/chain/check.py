"""Whether each stage of a chain could be trained, found out before the first one is.

    python -m nca_plugin.chain.check < STAGES.json

parses the arguments of stages as their runs will, and prints what the comparison of stages needs.
"""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from nca_plugin.chain.config import Chain, Stage
from nca_plugin.checkpoint.initial import padded_vocab_size
from nca_plugin.errors import NCAPluginError, in_context, one_line
from nca_plugin.files import complete_files
from nca_plugin.launch.process import PARENT, die_with_torchrun

_RECORD: Final = "chain.json"
#: What the rows of an embedding follow from: arguments of Megatron-LM, and fields of a transition.
_SIZES: Final = ("vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size")


def check_once(chain: Chain, world_size: int) -> None:
    """Check a chain as `check_stages` does, unless the same one was found to be right before; its folder remembers.

    Raises:
        NCAPluginError: see `check_stages`; a folder that holds something else.
    """
    record = chain.folder / _RECORD
    if not record.is_file() and any(stage.folder.exists() for stage in chain.stages):
        raise NCAPluginError(
            f"folder {chain.folder} holds something else than this chain: choose another with folder=..."
        )
    described = [[stage.name, stage.module, *stage.options, str(stage.transition)] for stage in chain.stages]
    content = json.dumps([world_size, described])
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    try:
        if json.loads(record.read_text())["checked"] == fingerprint:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    check_stages(chain, world_size)
    with complete_files(record) as (unfinished,):
        unfinished.write_text(json.dumps({"checked": fingerprint, "stages": described}, indent=1))


def check_stages(chain: Chain, world_size: int) -> None:
    """Raise `NCAPluginError` for arguments that a stage cannot be trained with, by as many ranks as `world_size`.

    Takes some seconds: Megatron is imported, in a process of its own.
    """
    with in_context(f"chain file {chain.path}"):
        sizes = []
        for stage, outcome in zip(chain.stages, _outcomes(chain, world_size), strict=True):
            with in_context(f"stages.{stage.name}"):
                if "error" in outcome:
                    raise NCAPluginError(outcome["error"])
                sizes.append(outcome)
        for (before, after), stage in zip(pairwise(sizes), chain.stages[1:], strict=True):
            with in_context(f"stages.{stage.name}"):
                _check_rows(stage, before, after)


def _outcomes(chain: Chain, world_size: int) -> list[dict[str, Any]]:
    stages = [
        {
            "options": stage.options,
            "unset": stage.unset,
            "is_hydra": stage.module.endswith(".hydra"),
            "freeze": stage.transition.freeze if stage.transition else [],
        }
        for stage in chain.stages
    ]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), PARENT: str(os.getpid())}
    # With NVML, looking for a GPU does not keep the processes that are forked afterwards from using it.
    environment = {**os.environ, **ranks, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    return _checked(stages, environment)


def _checked(stages: list[dict[str, Any]], environment: dict[str, str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "nca_plugin.chain.check"]
    done = subprocess.run(command, input=json.dumps(stages), capture_output=True, text=True, env=environment)
    try:
        outcomes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NCAPluginError(f"the stages' arguments could not be checked: {last}") from None
    return outcomes


def _check_rows(stage: Stage, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise `NCAPluginError` if the start checkpoint would have other embedding rows than the stage."""
    transition = stage.transition
    assert transition is not None
    settings = (transition.vocab_size, transition.make_vocab_size_divisible_by, transition.tensor_model_parallel_size)
    if any(settings):
        rows = padded_vocab_size(*(own or before[name] for own, name in zip(settings, _SIZES, strict=True)))
    else:
        rows = before["rows"]
    if rows != after["rows"]:
        raise NCAPluginError(
            f"transition leads to {rows} embedding rows, the stage has {after['rows']}: set "
            + ", ".join(f"transition.{name}={after[name]}" for name in _SIZES)
        )


def main(stages: list[dict[str, Any]]) -> None:
    """Check the arguments of stages, each in a process of its own: Megatron parses arguments once in a process."""
    from nca_plugin.megatron import cpu

    extra: tuple[str, ...] = ()
    if cpu.is_needed():
        cpu.enable()
        extra = cpu.CPU_ARGUMENTS
    # Before the first fork, because it takes seconds.
    import megatron.training.arguments  # noqa: F401
    import torch

    import nca_plugin.megatron.dataset_provider  # noqa: F401

    if not extra and len(stages) > 1 and torch.cuda.is_initialized():
        # Transformer Engine's import may have done it, and CUDA does not work after a fork.
        outcomes = [_checked([stage], dict(os.environ))[0] for stage in stages]
    elif len(stages) == 1:
        outcomes = [_outcome(stages[0], extra)]
    else:
        outcomes = [_in_a_process(stage, extra) for stage in stages]
    print(json.dumps(outcomes))


def _outcome(stage: dict[str, Any], extra: tuple[str, ...]) -> dict[str, Any]:
    """Return what the comparison of stages needs, or the `error`."""
    try:
        return _sizes(stage, extra)
    except NCAPluginError as error:
        return {"error": str(error)}
    # Megatron asserts, and ends the process.
    except BaseException as error:
        return {"error": one_line(error) or type(error).__name__}


def _in_a_process(stage: dict[str, Any], extra: tuple[str, ...]) -> dict[str, Any]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(_outcome(stage, extra)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.wait()
    return json.loads(content or b'{"error": "its process ended without a word"}')


def _sizes(stage: dict[str, Any], extra: tuple[str, ...]) -> dict[str, Any]:
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    from nca_plugin.launch.configuration import key_of
    from nca_plugin.launch.megatron import check_frozen_layers, parsed

    options = [*stage["options"], *extra]
    args = parsed(options, key_of if stage["is_hydra"] else str, stage["unset"], is_run=False)
    if args.ckpt_format not in ("torch_dist", "torch"):
        raise NCAPluginError(f"--ckpt-format {args.ckpt_format}: a transition reads torch_dist and torch only")
    check_frozen_layers(args, stage["freeze"])
    for path in _missing_datasets(args):
        raise NCAPluginError(f"data path {path}: {path}.idx does not exist")
    # Of a tokenizer of its own, Megatron keeps the padded number of ids alone.
    vocab_size = args.vocab_size or build_tokenizer(args).vocab_size
    return {**{name: getattr(args, name) for name in _SIZES}, "vocab_size": vocab_size, "rows": args.padded_vocab_size}


def _missing_datasets(args: Any) -> list[str]:
    from megatron.core.datasets.object_storage_utils import is_object_storage_path

    from nca_plugin.megatron.dataset_provider import data_paths
    from nca_plugin.sources import is_source

    paths = [path for path in data_paths(args) if not is_source(path) and not is_object_storage_path(path)]
    return [path for path in paths if not Path(f"{path}.idx").is_file()]


if __name__ == "__main__":
    die_with_torchrun()
    main(json.load(sys.stdin))
