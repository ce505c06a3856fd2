"""The report of a transition, for people to read."""

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from nca_plugin.display.terminal import short
from nca_plugin.files import described_size
from nca_plugin.lineage.training_data import Lineage

#: The file in the start checkpoint that lists the selectors of --freeze.
FREEZE_LIST: Final = "freeze.txt"
#: The arguments that name the start checkpoint to the next stage, by stack.
_HOW_TO_START: Final = {
    "megatron": "--pretrained-checkpoint {}",
    "bridge": "checkpoint.pretrained_checkpoint={}",
    "nemo": "'resume.restore_config=Config[nemo.lightning.RestoreConfig]' resume.restore_config.path={}",
}
_BYTES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


def plan_table(report: Mapping[str, Any]) -> Table:
    """Return a table with a row for each tensor of the model. State of the finished run has no rows."""
    table = Table(show_edge=False, pad_edge=False, box=None, header_style="bold")
    for column in ("action", "tensor", "shape", "type", "new values", "because of"):
        table.add_column(column, no_wrap=True)
    for row in _of_model(report):
        shape = "x".join(map(str, row["shape"]))
        if "new_shape" in row:
            shape += " -> " + "x".join(map(str, row["new_shape"]))
        name = row["name"] + ("[{}:{}]".format(*row["layers"]) if "layers" in row and _is_part(row) else "")
        new_values = row.get("new_values", "")
        if "rows_kept" in row:
            new_values = f"{row['rows_kept']:,} rows kept, others {new_values}"
        cells = (row["action"], name, shape, row["dtype"], new_values, row["reason"])
        # A pattern may look like rich's markup, which `Text` does not interpret.
        table.add_row(*map(Text, cells), style=_STYLES[row["action"]])
    return table


_STYLES: Final = {"keep": "", "reinit": "yellow", "resize": "cyan", "drop": "red"}


def summary(report: Mapping[str, Any]) -> str:
    """Return the total sizes of what is kept, drawn and dropped, the vocabulary, and whether files are linked."""
    sizes = dict.fromkeys(_STYLES, 0)
    for row in _of_model(report):
        sizes[row["action"]] += _num_bytes(row)
    dropped = sum(row["role"] == "run" for row in report["tensors"])
    how = {"link": "linked", "copy": "copied"}[report["layout"]]
    lines = [
        f"{short(sizes['keep'])}B kept ({how}), {short(sizes['reinit'])}B drawn anew, {short(sizes['resize'])}B resized"
        + (f", {short(sizes['drop'])}B dropped" if sizes["drop"] else "")
        + f"; {dropped} entries of the finished run left out: optimizer, schedule, random state.",
        f"Vocabulary: {report['vocab_size']:,} ids in {report['padded_vocab_size']:,} rows.",
        *(stage.sentence for stage in Lineage.from_stored({"now": None, "earlier": report["trained_on"]}).earlier),
    ]
    if report["tokenizer_left_behind"] is not None:
        lines.append(f"The finished run's tokenizer is left behind: {report['tokenizer_left_behind']}.")
    if report.get("why_copied"):
        lines.append(f"Copied, not linked: {report['why_copied']}.")
    if report.get("held_bytes"):
        lines.append(
            f"The links keep {described_size(report['held_bytes'])} on the disk that only the finished run needs, also "
            "when the old checkpoint is removed: --layout copy does not."
        )
    return "\n".join(lines)


def next_steps(report: Mapping[str, Any], target: Path) -> Iterator[str]:
    """Yield lines that say how the next stage starts from `target`, and what its model must do without."""
    left_out = sorted({row["role"] for row in _of_model(report) if row["action"] == "drop"})
    if left_out:
        yield f"The next stage's model must do without what was left out: {', '.join(left_out)}."
    arguments = start_arguments(report["stack"], target)
    if report["freeze"] and report["stack"] == "megatron":
        arguments += f" --freeze-list {shlex.quote(str(target / FREEZE_LIST))}"
    yield f"Start the next stage with {arguments}"
    if report["freeze"] and report["stack"] != "megatron":
        yield (
            f"Nothing is frozen by that alone: {target / FREEZE_LIST} is for a script of your own, see Freezing in "
            "docs/transition.md"
        )


def start_arguments(stack: str, target: Path) -> str:
    """Return the arguments, quoted for a shell, that start a run of a stack from the checkpoint at `target`."""
    return _HOW_TO_START[stack].format(shlex.quote(str(target)))


def _of_model(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in report["tensors"] if row["role"] not in ("run", "module")]


def _is_part(row: Mapping[str, Any]) -> bool:
    return bool(row["layers"] != [0, row["shape"][0]])


def _num_bytes(row: Mapping[str, Any]) -> int:
    shape = list(row.get("new_shape", row["shape"]))
    if "layers" in row:
        shape[0] = row["layers"][1] - row["layers"][0]
    return math.prod(shape) * _BYTES.get(row["dtype"], 1)
