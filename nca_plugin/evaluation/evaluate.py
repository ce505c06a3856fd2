"""`nca-plugin eval`: several checkpoints on the same tasks and texts, side by side.

Each checkpoint has a folder below the output, and each result a file of its own, so that an interrupted evaluation
continues after the last complete result:
    OUT/LABEL/checkpoint.json  which checkpoint it is
    OUT/LABEL/huggingface      the model as a Hugging Face folder, unless the checkpoint is one
    OUT/LABEL/tokenizer        its tokenizer
    OUT/LABEL/TASK.json        the results of a task, in lm-eval's layout
    OUT/LABEL/megatron.json    perplexity and accuracy on automata, see nca_plugin.launch.evaluate
    OUT/table.md               all results
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

#: The name of the tokenizer whose tokens are the ids of a source.
_IDS: Final = "ids"
_STAMP: Final = "checkpoint.json"
_MEGATRON: Final = "megatron.json"
#: The largest file of results in bytes. It holds every answer.
_MAX_RESULT_BYTES: Final = 1 << 32
#: The accuracies by frame that the table shows.
_SHOWN: Final = {
    "patch": "patches predicted",
    "grid": "whole frames predicted",
    "copy": "patches as in the frame before",
}
_ERROR: Final = "nca-plugin: error: "


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Attributes:
        checkpoints: save folders, folders of an iteration, or Hugging Face folders, by label.
        out: folder to write.
        tasks: names of tasks of lm-eval, including ours.
        settings: settings of the tasks.
        tokenizer: `bytes`, `ids` for models of a source, or a name or folder for `AutoTokenizer`; None if all
            checkpoints are Hugging Face folders, which have their own.
        data: prefixes of indexed datasets to measure perplexity on.
        source: URI of automata to predict.
        megatron_arguments: Megatron arguments that the checkpoints do not store.
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
    """A row of the table: a value for each checkpoint, with its standard error if it has one."""

    name: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]


def evaluate(
    evaluation: Evaluation,
    start_stage: StartStage = silent_stage,
    on_begin: Callable[[str], None] = lambda _: None,
) -> list[Figure]:
    """Evaluate what is missing, write it, and return all results.

    Args:
        on_begin: called with a description of each evaluation that begins.

    Raises:
        NCAPluginError: there is nothing to do; a task, checkpoint or tokenizer cannot be used; or a file of another
            evaluation is in the way.
    """
    if not evaluation.tasks and not evaluation.data and evaluation.source is None:
        raise NCAPluginError("nothing to evaluate: name --tasks, --perplexity or --source")
    if evaluation.source is not None:
        parse(evaluation.source)
    check_folder(evaluation.out)
    # All checkpoints are checked before the first one is evaluated, which may take hours.
    identities: dict[str, str] = {}
    for label, path in evaluation.checkpoints.items():
        with in_context(label):
            identities[label] = _identity(path)
            if evaluation.tasks and evaluation.tokenizer is None and not _is_huggingface(path):
                raise NCAPluginError(
                    f"checkpoint {path} needs a tokenizer: name it with --tokenizer: `bytes`, `ids` for a model of "
                    "automata, or a name or folder for AutoTokenizer"
                )
    if _is_loaded(evaluation):
        load_auto_tokenizer(str(evaluation.tokenizer))
    harness = Harness(evaluation.tasks, evaluation.settings) if evaluation.tasks else None
    expected = {label: _expected(evaluation, identity, harness) for label, identity in identities.items()}
    for label, files in expected.items():
        with in_context(label):
            for name, about in files.items():
                _is_missing(evaluation.out / label / name, about)
    for label, path in evaluation.checkpoints.items():
        folder, files = evaluation.out / label, expected[label]
        folder.mkdir(parents=True, exist_ok=True)
        with in_context(label):
            if _is_missing(folder / _STAMP, files[_STAMP]):
                _store(folder / _STAMP, files[_STAMP], {})
            if harness is not None:
                model = _huggingface(evaluation, label, path, start_stage)
                for task in evaluation.tasks:
                    name = f"{task}.json"
                    if _is_missing(folder / name, files[name]):
                        on_begin(f"{label}: {task}")
                        _store(folder / name, files[name], harness.evaluate(model, task))
            if _MEGATRON in files and _is_missing(folder / _MEGATRON, files[_MEGATRON]):
                on_begin(f"{label}: through Megatron")
                _store(folder / _MEGATRON, files[_MEGATRON], _by_megatron(evaluation, path, folder))
    figures = _figures(evaluation)
    with complete_files(evaluation.out / TABLE) as (unfinished,):
        unfinished.write_text(markdown(figures, list(evaluation.checkpoints)))
    return figures


def markdown(figures: Sequence[Figure], labels: Sequence[str]) -> str:
    """Return the results as a Markdown table with a column for each checkpoint."""
    rows = [["", *labels], ["---", *("---:" for _ in labels)]]
    rows += [[figure.name, *cells(figure)] for figure in figures]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def cells(figure: Figure) -> list[str]:
    """Return the values of a row as text, with their standard errors."""
    return [
        "" if value is None else f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
        for value, error in zip(figure.values, figure.errors, strict=True)
    ]


def _identity(path: Path) -> str:
    """Return the full path of a checkpoint's iteration, which tells it from a later one of the same run."""
    return str(path.resolve() if _is_huggingface(path) else find_checkpoint(path).resolve())


def _expected(evaluation: Evaluation, identity: str, harness: Harness | None) -> dict[str, dict[str, Any]]:
    """Return the files of a checkpoint's results, each with what it says about its evaluation.

    Args:
        identity: what `_identity` returns for the checkpoint.
    """
    # Nothing else records what was exported.
    files: dict[str, dict[str, Any]] = {_STAMP: {"checkpoint": identity, "tokenizer": evaluation.tokenizer}}
    if harness is not None:
        for task in evaluation.tasks:
            files[f"{task}.json"] = {
                "checkpoint": identity,
                "task": task,
                "version": harness.version(task),
                "settings": _of_task(evaluation, task),
            }
    if evaluation.data or evaluation.source is not None:
        files[_MEGATRON] = {
            "checkpoint": identity,
            "data": list(evaluation.data),
            "source": evaluation.source,
            "arguments": list(evaluation.megatron_arguments),
        }
    return files


def _of_task(evaluation: Evaluation, task: str) -> dict[str, Any]:
    settings = evaluation.settings
    values = {name: value for name, value in asdict(settings).items() if name not in ("data", "device", "batch_size")}
    return {**values, "data": settings.data.get(task), "tokenizer": evaluation.tokenizer}


def _is_missing(path: Path, about: dict[str, Any]) -> bool:
    """Whether a result is missing. Raises `NCAPluginError` if the file holds the result of another evaluation."""
    if not path.exists():
        return True
    if read_object(path, _MAX_RESULT_BYTES).get("nca_plugin") != about:
        raise NCAPluginError(f"{path} belongs to another evaluation: choose another --out, or remove it")
    return False


def _store(path: Path, about: dict[str, Any], result: dict[str, Any]) -> None:
    with complete_files(path) as (unfinished,):
        unfinished.write_text(json.dumps({"nca_plugin": about, **result}, indent=1) + "\n")


def _huggingface(evaluation: Evaluation, label: str, path: Path, start_stage: StartStage) -> Path:
    """Return the Hugging Face folder of a checkpoint. It is exported first if need be."""
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
    """Whether a tokenizer has to be loaded by its name for a checkpoint that does not have it yet."""
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
    """Return the vocabulary size of a checkpoint's model, or the number of its rows if that is not stored."""
    model = read_checkpoint(path).model
    return int(model.vocab_size or model.need("padded_vocab_size"))


def _is_huggingface(path: Path) -> bool:
    return (path / "config.json").is_file()


def _by_megatron(evaluation: Evaluation, path: Path, folder: Path) -> dict[str, Any]:
    """Return the results of `nca_plugin.launch.evaluate`, run in its own process because Megatron has global state."""
    if _is_huggingface(path):
        raise NCAPluginError(
            f"{path} is a Hugging Face folder: --perplexity and --source need a Megatron checkpoint "
            "(nca-plugin export --from hf)"
        )
    checkpoint = find_checkpoint(path)
    load = ["--load", str(checkpoint.parent)]
    if checkpoint.name.startswith("iter_"):
        load += ["--ckpt-step", checkpoint.name.removeprefix("iter_")]
    out = folder / ".megatron.json"
    command = [sys.executable, "-m", launch.EVALUATE, "--use-checkpoint-args", *load]
    # A NullTokenizer, because the data are ids. The model must have rows for all of them.
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
    """Return the rows of the table for all checkpoints, in the order in which they first occur."""
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
    """Return the values of a checkpoint with their standard errors, by name."""
    numbers: dict[str, tuple[float | None, float | None]] = {}
    for task in evaluation.tasks:
        result = json.loads((folder / f"{task}.json").read_text())
        # The mean of a group comes before its tasks.
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
                    # The table shows powers of two; the file has all frames.
                    if value is not None and not seen & (seen - 1):
                        numbers[f"automata: {what}, {seen} frames seen"] = value, None
    return numbers
