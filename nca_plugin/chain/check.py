"""Checks that all stages of a chain can be trained, before the first one is."""

import hashlib
import json
from itertools import pairwise
from typing import Any, Final

from nca_plugin.chain.stages import Chain, Stage
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import complete_files
from nca_plugin.launch.check import SIZES, ArgumentSet, check_argument_sets
from nca_plugin.transition.vocabulary import next_vocabulary

_RECORD: Final = "chain.json"


def check_once(chain: Chain, world_size: int) -> None:
    """Check a chain with `check_stages`, unless a file in its folder says that the same chain has passed.

    Raises:
        NCAPluginError: for the reasons of `check_stages`, or if the folder holds something else.
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
    """Raise `NCAPluginError` if a stage cannot be trained with its arguments on `world_size` ranks.

    This takes some seconds, because it imports Megatron in a process of its own.
    """
    argument_sets = [
        ArgumentSet(
            stage.options,
            stage.unset,
            is_hydra=stage.module.endswith(".hydra"),
            freeze=tuple(stage.transition.freeze) if stage.transition else (),
        )
        for stage in chain.stages
    ]
    outcomes = check_argument_sets(argument_sets, world_size)
    with in_context(f"chain file {chain.path}"):
        sizes = []
        for stage, outcome in zip(chain.stages, outcomes, strict=True):
            with in_context(f"stages.{stage.name}"):
                if "error" in outcome:
                    raise NCAPluginError(outcome["error"])
                sizes.append(outcome)
        for (before, after), stage in zip(pairwise(sizes), chain.stages[1:], strict=True):
            with in_context(f"stages.{stage.name}"):
                _check_rows(stage, before, after)


def _check_rows(stage: Stage, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise `NCAPluginError` if the start checkpoint would not have the stage's number of embedding rows."""
    transition = stage.transition
    assert transition is not None
    settings = (transition.vocab_size, transition.make_vocab_size_divisible_by, transition.tensor_model_parallel_size)
    rows = next_vocabulary(ModelConfig(before), before["rows"], *settings).rows
    if rows != after["rows"]:
        raise NCAPluginError(
            f"transition leads to {rows} embedding rows, the stage has {after['rows']}: set "
            + ", ".join(f"transition.{name}={after[name]}" for name in SIZES)
        )
