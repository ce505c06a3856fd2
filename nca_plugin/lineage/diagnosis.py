"""A diagnosis for people: what a checkpoint was trained on, and whether this machine makes the same samples."""

from dataclasses import dataclass
from pathlib import Path

from nca_plugin.checkpoint.opened import open_checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import Trained, read_trained
from nca_plugin.lineage.same_data import difference
from nca_plugin.lineage.training_data import DataPath, TrainingData, fingerprint
from nca_plugin.sources import is_source, parse


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The lines to print, and whether no line reports a fault."""

    lines: tuple[str, ...]
    is_right: bool


def diagnose(path: Path, blend: tuple[list[str], list[float] | None] | None = None) -> Diagnosis:
    """Return what the checkpoint at `path` was trained on, and whether this machine can make its samples and resume it.

    Args:
        blend: the data paths of a run that shall resume it, and their weights, if any; None checks no such run.

    Raises:
        NCAPluginError: if there is no complete checkpoint of a known format, or the data of `blend` cannot be read.
    """
    checkpoint = open_checkpoint(path)
    trained = read_trained(checkpoint)
    if checkpoint.format is not None or trained.iteration is None:
        # A folder without a checkpoint, or one whose data files are damaged, may still hold a common state.
        _ = checkpoint.tensors
    lines = [f"checkpoint {trained.folder}{_progress(trained)}"]
    if trained.lineage is None:
        lines.append("It was written without nca-plugin, and does not say what it was trained on.")
        return Diagnosis(tuple(lines), True)
    faults = []
    now = trained.lineage.now
    for stage in trained.lineage.ended(trained.samples).earlier:
        lines.append(stage.sentence)
        for part in stage.parts:
            # A generated dataset is not made anew for training, and may begin anywhere in its source. nca-plugin verify
            # checks it.
            if part.uri is not None and is_source(part.path):
                fault = _fault(part, stage)
                faults.append(fault)
                lines.append(
                    f"  ok     fingerprint {part.fingerprint}, as here" if fault is None else f"  BROKEN {fault}"
                )
    if now is None:
        lines.append("It is a start checkpoint, from which a run may train on any data.")
    elif blend is not None:
        other = TrainingData.of(*blend, now.seq_length)
        differs = difference(now, other)
        faults.append(differs)
        lines.append(
            "  ok     a run with these data resumes it"
            if differs is None
            else f"  BROKEN a run with these data does not resume it: it would have {differs}"
        )
        if differs is not None:
            lines.append(
                "to put right: use the data that it was trained on, begin another stage with nca-plugin transfer "
                f"--from {path}, or resume with --allow-other-data (allow_other_data=true in Megatron-Bridge's dataset "
                "and NeMo 2's data)"
            )
    return Diagnosis(tuple(lines), not any(faults))


def _progress(trained: Trained) -> str:
    words = [
        f"{name} {number:,}"
        for name, number in (("iteration", trained.iteration), ("samples", trained.samples))
        if number is not None
    ]
    return ": " + ", ".join(words) if words else ""


def _fault(part: DataPath, stage: TrainingData) -> str | None:
    """Return why this machine makes other samples than the stage was trained on; None if it makes the same."""
    assert part.uri is not None
    try:
        here = fingerprint(parse(part.uri), stage.seq_length)
    except NCAPluginError as error:
        return f"the same samples cannot be made here: {error}"
    if here == part.fingerprint:
        return None
    return (
        f"this machine makes other samples: fingerprint {here} rather than {part.fingerprint}. Install nca-plugin "
        f"{stage.version}, and see nca-plugin doctor for the deflate library"
    )
