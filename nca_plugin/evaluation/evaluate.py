"""`nca-plugin eval`: several checkpoints, the same tasks and texts, side by side.

Every checkpoint has a folder below the output, with what is found in files of its own, so that interrupted work goes on
after the last that is complete:

    OUT/LABEL/checkpoint.json  which checkpoint it is
    OUT/LABEL/huggingface      the model as a Hugging Face folder, unless it is one already
    OUT/LABEL/tokenizer        that it is given
    OUT/LABEL/TASK.json        of a task, in lm-eval's own layout
    OUT/LABEL/megatron.json    perplexity and accuracy on automata, see nca_plugin.launch.evaluate
    OUT/table.md               all of it
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nca_plugin import launch
from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.evaluation.labels import TABLE
from nca_plugin.files import check_folder, complete_files
from nca_plugin.huggingface.export import export_hf
from nca_plugin.json_files import read_object
from nca_plugin.sources import parse
from nca_plugin.tasks.harness import Harness, Settings
from nca_plugin.tasks.lm_eval_results import task_metrics
from nca_plugin.tasks.tokenizer_folders import save_tokenizer, write_byte_tokenizer, write_id_tokenizer
from nca_plugin.text.prepare import BYTES
from nca_plugin.text.tokenizers import load_auto_tokenizer

#: The tokenizer of a source's ids, which this package writes.
_IDS: Final = "ids"
_STAMP: Final = "checkpoint.json"
_MEGATRON: Final = "megatron.json"
#: Of a file of results, which holds every answer.
_MAX_RESULT_BYTES: Final = 1 << 32
#: Of the accuracies by frame, what the table has.
_SHOWN: Final = {
    "patch": "patches predicted",
    "grid": "whole frames predicted",
    "copy": "patches as in the frame before",
}
_ERROR: Final = "nca-plugin: error: "


@dataclass(frozen=True)
class Evaluation:
    """What is to be found out.

    Attributes:
        checkpoints: by label, save folders, iterations of them, or Hugging Face folders.
        out: the folder to write.
        tasks: of lm-eval.
        settings: of the tasks.
        tokenizer: `bytes`, `ids` for models of a source, or what `AutoTokenizer` loads; None for Hugging Face folders,
            which bring their own.
        data: prefixes of indexed datasets to measure perplexity on.
        source: URI of automata to predict.
        megatron_arguments: of the runs, for what their checkpoints do not say.
    """

    checkpoints: dict[str, Path]
    out: Path
    tasks: Sequence[str] = ()
    settings: Settings = field(default_factory=Settings)
    tokenizer: str | None = None
    data: Sequence[str] = ()
    source: str | None = None
    megatron_arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A row of the table: a number for each checkpoint, with its standard error where there is one."""

    name: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]


def evaluate(
    evaluation: Evaluation,
    start_stage: StartStage = silent_stage,
    on_begin: Callable[[str], None] = lambda _: None,
) -> list[Figure]:
    """Find out what is missing, write it, and return all of it.

    Args:
        on_begin: called with what begins.

    Raises:
        NCAPluginError: nothing to do; a task, a checkpoint or a tokenizer that will not do; a file of an earlier call
            that was about something else.
    """
    if not evaluation.tasks and not evaluation.data and evaluation.source is None:
        raise NCAPluginError("nothing to evaluate: name --tasks, --perplexity or --source")
    if evaluation.source is not None:
        parse(evaluation.source)
    check_folder(evaluation.out)
    # Before the first is evaluated, which may take hours.
    identities: dict[str, str] = {}
    for label, path in evaluation.checkpoints.items():
        with in_context(label):
            identities[label] = _identity(path)
            if evaluation.tasks and evaluation.tokenizer is None and not _is_huggingface(path):
                raise NCAPluginError(
                    f"checkpoint {path} needs a tokenizer: name it with --tokenizer: `bytes`, `ids` for a model of "
                    "automata, or what AutoTokenizer loads"
                )
    if _is_loaded(evaluation):
        load_auto_tokenizer(str(evaluation.tokenizer))
    harness = Harness(evaluation.tasks, evaluation.settings) if evaluation.tasks else None
    about: dict[str, Any]
    for label, path in evaluation.checkpoints.items():
        folder = evaluation.out / label
        folder.mkdir(parents=True, exist_ok=True)
        with in_context(label):
            # What is exported is told by nothing else.
            about = {"checkpoint": identities[label], "tokenizer": evaluation.tokenizer}
            if _is_missing(folder / _STAMP, about):
                _store(folder / _STAMP, about, {})
            if harness is not None:
                model = _huggingface(evaluation, label, path, start_stage)
                for task in evaluation.tasks:
                    about = {"checkpoint": identities[label], "task": task, "settings": _of_task(evaluation, task)}
                    if _is_missing(folder / f"{task}.json", about):
                        on_begin(f"{label}: {task}")
                        _store(folder / f"{task}.json", about, harness.evaluate(model, task))
            if evaluation.data or evaluation.source is not None:
                about = {
                    "checkpoint": identities[label],
                    "data": list(evaluation.data),
                    "source": evaluation.source,
                    "arguments": list(evaluation.megatron_arguments),
                }
                if _is_missing(folder / _MEGATRON, about):
                    on_begin(f"{label}: through Megatron")
                    _store(folder / _MEGATRON, about, _by_megatron(evaluation, path, folder))
    figures = _figures(evaluation)
    with complete_files(evaluation.out / TABLE) as (unfinished,):
        unfinished.write_text(markdown(figures, list(evaluation.checkpoints)))
    return figures


def markdown(figures: Sequence[Figure], labels: Sequence[str]) -> str:
    """Return a table of figures, a checkpoint a column."""
    rows = [["", *labels], ["---", *("---:" for _ in labels)]]
    rows += [[figure.name, *cells(figure)] for figure in figures]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def cells(figure: Figure) -> list[str]:
    """Return the numbers of a row for people, with their standard errors."""
    return [
        "" if value is None else f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
        for value, error in zip(figure.values, figure.errors, strict=True)
    ]


def _identity(path: Path) -> str:
    """Return what a checkpoint is called, so that a later one of the same run is not taken for it."""
    return str(path.resolve() if _is_huggingface(path) else find_checkpoint(path).resolve())


def _of_task(evaluation: Evaluation, task: str) -> dict[str, Any]:
    settings = evaluation.settings
    values = {name: value for name, value in asdict(settings).items() if name not in ("data", "device", "batch_size")}
    return {**values, "data": settings.data.get(task), "tokenizer": evaluation.tokenizer}


def _is_missing(path: Path, about: dict[str, Any]) -> bool:
    """Whether there is no result yet. Raises `NCAPluginError` if there is one of something else."""
    if not path.exists():
        return True
    if read_object(path, _MAX_RESULT_BYTES).get("nca_plugin") != about:
        raise NCAPluginError(f"{path} belongs to another evaluation: choose another --out, or remove it")
    return False


def _store(path: Path, about: dict[str, Any], result: dict[str, Any]) -> None:
    with complete_files(path) as (unfinished,):
        unfinished.write_text(json.dumps({"nca_plugin": about, **result}, indent=1) + "\n")


def _huggingface(evaluation: Evaluation, label: str, path: Path, start_stage: StartStage) -> Path:
    """Return the Hugging Face folder of a checkpoint, exported if need be."""
    if _is_huggingface(path):
        return path
    assert evaluation.tokenizer is not None
    tokenizer = _tokenizer_folder(evaluation, label)
    if not tokenizer.is_dir():
        if evaluation.tokenizer == BYTES:
            write_byte_tokenizer(tokenizer)
        elif evaluation.tokenizer == _IDS:
            write_id_tokenizer(tokenizer, _num_ids(path))
        else:
            save_tokenizer(evaluation.tokenizer, tokenizer)
    model = evaluation.out / label / "huggingface"
    if not model.is_dir():
        export_hf(path, model, tokenizer=tokenizer, start_stage=start_stage)
    return model


def _is_loaded(evaluation: Evaluation) -> bool:
    """Whether the tokenizer is to be loaded by its name, for a checkpoint that has not been given it yet."""
    return (
        bool(evaluation.tasks)
        and evaluation.tokenizer not in (None, BYTES, _IDS)
        and any(
            not _is_huggingface(path) and not _tokenizer_folder(evaluation, label).is_dir()
            for label, path in evaluation.checkpoints.items()
        )
    )


def _tokenizer_folder(evaluation: Evaluation, label: str) -> Path:
    return evaluation.out / label / "tokenizer"


def _num_ids(path: Path) -> int:
    """Return how many ids a checkpoint's model has, its rows where it does not tell."""
    model = read_checkpoint(path).model
    return int(model.vocab_size or model.need("padded_vocab_size"))


def _is_huggingface(path: Path) -> bool:
    return (path / "config.json").is_file()


def _by_megatron(evaluation: Evaluation, path: Path, folder: Path) -> dict[str, Any]:
    """Return what `nca_plugin.launch.evaluate` finds, in a process of its own: Megatron has global state."""
    if _is_huggingface(path):
        raise NCAPluginError(
            f"{path} is a Hugging Face folder: --perplexity and --source need a checkpoint of Megatron's "
            "(nca-plugin export --from hf)"
        )
    checkpoint = find_checkpoint(path)
    load = ["--load", str(checkpoint.parent)]
    if checkpoint.name.startswith("iter_"):
        load += ["--ckpt-step", checkpoint.name.removeprefix("iter_")]
    out = folder / ".megatron.json"
    command = [sys.executable, "-m", launch.EVALUATE, "--use-checkpoint-args", *load]
    # Ids rather than text, and no more of them than the model has rows.
    command += [
        "--tokenizer-type",
        "NullTokenizer",
        "--vocab-size",
        str(_num_ids(path)),
    ]
    command += ["--micro-batch-size", "4", "--evaluation-out", str(out), "--induction-samples", "0"]
    if evaluation.data:
        command += ["--evaluation-data", *evaluation.data]
    if evaluation.source is not None:
        command += ["--evaluation-source", evaluation.source]
    done = subprocess.run(
        [*command, *evaluation.megatron_arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        (folder / "megatron.log").write_text(done.stdout)
        errors = [line.removeprefix(_ERROR) for line in done.stdout.splitlines() if line.startswith(_ERROR)]
        raise NCAPluginError(f"{errors[-1] if errors else 'Megatron failed'}; see {folder / 'megatron.log'}")
    try:
        result: dict[str, Any] = json.loads(out.read_text())
    finally:
        out.unlink(missing_ok=True)
    return result


def _figures(evaluation: Evaluation) -> list[Figure]:
    """Return the rows of the table: of all checkpoints, in the order of the first that has them."""
    found = [_numbers(evaluation, evaluation.out / label) for label in evaluation.checkpoints]
    names = dict.fromkeys(name for numbers in found for name in numbers)
    return [
        Figure(
            name,
            tuple(numbers.get(name, (None, None))[0] for numbers in found),
            tuple(numbers.get(name, (None, None))[1] for numbers in found),
        )
        for name in names
    ]


def _numbers(evaluation: Evaluation, folder: Path) -> dict[str, tuple[float | None, float | None]]:
    """Return the numbers of a checkpoint, with their standard errors."""
    numbers: dict[str, tuple[float | None, float | None]] = {}
    for task in evaluation.tasks:
        result = json.loads((folder / f"{task}.json").read_text())
        # Of a group, the mean over its tasks comes first.
        for name in dict.fromkeys([*result.get("groups", {}), *result["results"]]):
            for metric, (value, error) in task_metrics(result, name).items():
                numbers[f"{name} {metric}"] = value, error
    if evaluation.data or evaluation.source is not None:
        result = json.loads((folder / _MEGATRON).read_text())
        for row in result["perplexity"]:
            numbers[f"perplexity of {row['path']}"] = row["perplexity"], None
        in_context = result["in_context"]
        if in_context is not None:
            numbers["automata: tokens predicted"] = in_context["accuracy"], None
            for name, what in _SHOWN.items() if in_context["frames"] else ():
                for seen, value in zip(in_context["frames"], in_context[name], strict=True):
                    # Powers of two tell how it grows; the file has all of them.
                    if value is not None and not seen & (seen - 1):
                        numbers[f"automata: {what}, {seen} frames seen"] = value, None
    return numbers
