"""The progress of a chain, which follows from its checkpoints alone. No other record is kept that could be wrong.

A start checkpoint is either complete or absent, because `transfer` gives it its name last.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nca_plugin.chain.stages import Chain, Stage
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.checkpoint.saves import mend_saves, newest_save
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.transition.transfer import REPORT, keeps_values_of


@dataclass(frozen=True)
class StageState:
    """The progress of a stage."""

    stage: Stage
    iteration: int | None
    """The iteration of the newest complete checkpoint; None without one."""

    is_complete: bool
    is_started: bool
    """Whether the stage can be trained now, from a checkpoint of its own or its start checkpoint."""

    damage: str | None = None
    """What is wrong with the tracker file, which `mend` repairs; None if nothing is."""

    @property
    def described(self) -> str:
        """The state, for people to read."""
        if self.is_complete:
            return "complete" if self.iteration is not None else "complete, and removed"
        if self.iteration is None:
            return "ready to start" if self.is_started else "waiting"
        return self.stage.progress(self.iteration)


def survey(chain: Chain) -> list[StageState]:
    """Return the state of each stage.

    Raises:
        NCAPluginError: if checkpoints contradict each other or the chain. The message says what to do.
    """
    found = [newest_save(stage.folder) for stage in chain.stages]
    states: list[StageState] = []
    for number, stage in enumerate(chain.stages):
        checkpoint, damage = found[number]
        is_followed = number + 1 < len(chain.stages) and (
            found[number + 1][0] is not None or _start_exists(chain.stages[number + 1])
        )
        if checkpoint is None:
            # The user may remove a stage to save space, once the next stage does not need it any more.
            is_removed = is_followed and not stage.folder.exists()
            iteration, is_complete = None, is_removed
        else:
            iteration = _iteration_of(checkpoint)
            is_complete = _reaches(stage, checkpoint, iteration)
        is_started = checkpoint is not None or stage.start is None or _start_exists(stage)
        state = StageState(stage, iteration, is_complete, is_started, damage)
        if is_followed and not is_complete:
            raise NCAPluginError(_contradiction(chain, number, state))
        if _start_exists(stage):
            assert stage.start is not None
            with in_context(f"start checkpoint {stage.start}"):
                _check_start(stage, chain.stages[number - 1], found[number - 1][0])
        states.append(state)
    return states


def next_stage(states: Sequence[StageState]) -> StageState | None:
    """Return the stage to train next, which is the first that is not complete; None if all are."""
    return next((state for state in states if not state.is_complete), None)


def mend(state: StageState) -> list[str]:
    """Repair the save folder of a stage, see `mend_saves`."""
    return mend_saves(state.stage.folder, state.iteration, state.damage)


def _iteration_of(checkpoint: Checkpoint) -> int:
    return int(checkpoint.folder.name.removeprefix("iter_"))


def _reaches(stage: Stage, checkpoint: Checkpoint, iteration: int) -> bool:
    """Return whether a checkpoint is at the end of the stage."""
    if stage.train_iters is not None:
        return iteration >= stage.train_iters
    assert stage.train_samples is not None
    args: Any = (checkpoint.common_state or {}).get("args", Namespace())
    if getattr(args, "consumed_train_samples", 0) >= stage.train_samples:
        return True
    # Megatron trains only whole batches, and stores how many iterations that makes.
    is_same_length = getattr(args, "train_samples", None) == stage.train_samples
    return is_same_length and iteration >= (getattr(args, "train_iters", None) or iteration + 1)


def _start_exists(stage: Stage) -> bool:
    return stage.start is not None and stage.start.is_dir()


def _contradiction(chain: Chain, number: int, state: StageState) -> str:
    stage, after = state.stage, chain.stages[number + 1]
    own = "has no complete checkpoint" if state.iteration is None else f"is {state.described}"
    later = [path for later in chain.stages[number + 1 :] for path in (later.start, later.folder) if path is not None]
    return (
        f"stage {stage.name} {own} ({stage.folder}), but stage {after.name}, which comes after it, has begun: to train "
        f"on from there, remove {' '.join(str(path) for path in later if path.is_dir())}; else give stages."
        f"{stage.name} the length that it had"
    )


def _check_start(stage: Stage, previous: Stage, origin: Checkpoint | None) -> None:
    """Raise `NCAPluginError` unless `transfer` would make the same start checkpoint from the stage before it now.

    Args:
        origin: the last checkpoint of `previous`; None if it was removed.
    """
    assert stage.start is not None and stage.transition is not None
    way_out = f"remove it, and {stage.folder}, to start stage {stage.name} anew"
    try:
        report = json.loads((stage.start / REPORT).read_text())
        source = Path(report["from"])
        settings = {name: report[name] for name in stage.transition.described()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NCAPluginError(f"its {REPORT} cannot be read ({error}): {way_out}") from error
    expected = stage.transition.described()
    # These settings do not change the values in the start checkpoint.
    for name in ("layout", "verify"):
        expected[name] = settings[name]
    if expected["vocab_size"] is None:
        expected["vocab_size"] = settings["vocab_size"]
    for name, value in expected.items():
        if settings[name] != value:
            raise NCAPluginError(
                f"it was made with {name} {_shown(settings[name])}, and stages.{stage.name}.transition has "
                f"{_shown(value)}: set it back; or {way_out}"
            )
    now = previous.folder / source.name if origin is None else origin.folder
    # Only names are compared, because the whole folder may have been moved.
    is_same = (source.parent.name, source.name) == (now.parent.name, now.name)
    if not is_same or (origin is not None and not keeps_values_of(report, origin)):
        raise NCAPluginError(f"it was made from {source}, not from what is in {now} now: {way_out}")


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
