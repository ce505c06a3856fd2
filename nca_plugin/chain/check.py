"""Whether each stage of a chain could be trained, found out before the first one is.

    python -m nca_plugin.chain.check <a stage, as JSON>

parses a stage's arguments as its run will, in a process of its own, and prints what the comparison of stages needs.
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
from nca_plugin.errors import NCAPluginError, in_context, one_line_errors
from nca_plugin.files import complete_files
from nca_plugin.launch.process import PARENT, die_with_torchrun

_RECORD: Final = "chain.json"
_PREFIX: Final = "nca-plugin: error: "


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

    Takes some seconds: Megatron is imported for each stage, in a process of its own.
    """
    with in_context(f"chain file {chain.path}"):
        processes = [_start(stage, world_size) for stage in chain.stages]
        outcomes = [(process.communicate(), process.returncode) for process in processes]
        sizes = []
        for stage, ((output, errors), code) in zip(chain.stages, outcomes, strict=True):
            with in_context(f"stages.{stage.name}"):
                if code:
                    lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
                    named = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
                    raise NCAPluginError((named or lines)[-1])
                sizes.append(json.loads(output.splitlines()[-1]))
        for (before, after), stage in zip(pairwise(sizes), chain.stages[1:], strict=True):
            with in_context(f"stages.{stage.name}"):
                _check_rows(stage, before, after)


def _start(stage: Stage, world_size: int) -> subprocess.Popen[str]:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), PARENT: str(os.getpid())}
    values = {
        "options": stage.options,
        "unset": stage.unset,
        "is_hydra": stage.module.endswith(".hydra"),
        "freeze": stage.transition.freeze if stage.transition else [],
    }
    command = [sys.executable, "-m", __name__, json.dumps(values)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ranks}
    )


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


_SIZES: Final = ("vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size")


def main(stage: dict[str, Any]) -> None:
    """Check the arguments of one stage in this process."""
    from nca_plugin.launch.configuration import key_of
    from nca_plugin.launch.megatron import check_frozen_layers, parsed

    args = parsed(stage["options"], key_of if stage["is_hydra"] else str, stage["unset"], is_run=False)
    if args.ckpt_format not in ("torch_dist", "torch"):
        raise NCAPluginError(f"--ckpt-format {args.ckpt_format}: a transition reads torch_dist and torch only")
    check_frozen_layers(args, stage["freeze"])
    for path in _missing_datasets(args):
        raise NCAPluginError(f"data path {path}: {path}.idx does not exist")
    sizes = {name: getattr(args, name) for name in _SIZES}
    print(json.dumps({**sizes, "rows": args.padded_vocab_size}))


def _missing_datasets(args: Any) -> list[str]:
    from megatron.core.datasets.object_storage_utils import is_object_storage_path

    from nca_plugin.megatron.dataset_provider import data_paths
    from nca_plugin.sources import is_source

    paths = [path for path in data_paths(args) if not is_source(path) and not is_object_storage_path(path)]
    return [path for path in paths if not Path(f"{path}.idx").is_file()]


if __name__ == "__main__":
    die_with_torchrun()
    with one_line_errors(of_every_rank=True):
        main(json.loads(sys.argv[1]))
