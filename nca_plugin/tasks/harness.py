"""Tasks of lm-eval, including ours, on a model in a Hugging Face folder.

Our tasks are the files in `definitions`. All other tasks of lm-eval can be named too.
"""

import glob
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nca_plugin.errors import NCAPluginError, in_context, one_line, require
from nca_plugin.json_files import shown_names
from nca_plugin.suggestions import unknown_name
from nca_plugin.tasks.lm_eval_results import add_errors
from nca_plugin.tasks.sandbox import check_sandbox
from nca_plugin.text.examples import Example, read_examples, read_rows

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_TASKS: Final = Path(__file__).with_name("definitions")
#: Loggers of packages that print much about their settings.
_LOGGERS: Final = ("lm_eval", "lm-eval", "transformers", "datasets", "huggingface_hub")
#: The prefix of the names of our tasks.
_OURS: Final = "nca_"
_AUTOMATA: Final = "nca_automata"
_PROMPT_ANSWER: Final = "nca_prompt_answer"
#: Arguments of datasets.load_dataset for a folder. Of one that was read before and has changed since, datasets would
#: silently give the rows that it had then.
_READ_ANEW: Final = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"}


@dataclass(frozen=True)
class Settings:
    """How models are evaluated.

    Attributes:
        data: by task, what replaces its data set: a JSONL file, which becomes its test split, or a folder with a copy
            of the data set's repository; for `nca_automata` the URI of a source.
        seq_length: tokens per sample of `nca_automata`.
        num_samples: answers per question; None for the task's own number.
        max_new_tokens: longest answer in tokens; None for the task's own limit.
        limit: questions per task; None for all.
        batch_size: number of answers computed at once, or `auto`.
        device: device for torch; None for the first GPU, else the CPU.
        allow_model_code: whether tasks may run programs that the model writes.
        seed: sampling seed.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    seq_length: int = 1024
    num_samples: int | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    batch_size: str = "16"
    device: str | None = None
    allow_model_code: bool = False
    seed: int = 1234


@dataclass(frozen=True)
class _Loaded:
    """The tasks behind a name, and what to pass to lm-eval, which for a group is the group itself, to get its mean."""

    leaves: list["Task"]
    evaluated: list[Any]


class Harness:
    """lm-eval with the named tasks.

    Raises:
        NCAPluginError: lm-eval is not installed or does not have a task, a task runs programs and may not, or data
            cannot be loaded.
    """

    def __init__(self, tasks: Sequence[str], settings: Settings) -> None:
        for option, value in (
            ("--samples", settings.num_samples),
            ("--max-tokens", settings.max_new_tokens),
            ("--limit", settings.limit),
        ):
            if value is not None and value < 1:
                raise NCAPluginError(f"{option} {value}: must be at least 1")
        if not re.fullmatch("auto|0*[1-9][0-9]{,8}", settings.batch_size):
            raise NCAPluginError(f"--batch-size {settings.batch_size}: must be a number of at least 1, or auto")
        if not 0 <= settings.seed < 1 << 32:
            raise NCAPluginError(f"--seed {settings.seed}: must lie in 0 .. 2^32 - 1")
        self._settings = settings
        self._manager = _manager(tasks)
        unused = sorted(set(settings.data) - set(tasks))
        if unused:
            raise NCAPluginError(f"data of task '{unused[0]}', which is not among the tasks: {', '.join(tasks)}")
        self._tasks = {name: _load(self._manager, name, _overrides(name, settings)) for name in tasks}
        for name, loaded in self._tasks.items():
            if any(task.config.unsafe_code for task in loaded.leaves):
                _check_programs(name, settings)

    def evaluate(self, folder: Path, task: str) -> dict[str, Any]:
        """Return lm-eval's results, in its layout and with samples, for the model in a Hugging Face folder.

        Raises:
            NCAPluginError: the model or its tokenizer cannot be loaded.
        """
        import lm_eval

        settings = self._settings
        with _quiet():
            model = _model(folder, settings)
            try:
                found: dict[str, Any] = lm_eval.simple_evaluate(
                    model,
                    tasks=self._tasks[task].evaluated,
                    task_manager=self._manager,
                    limit=settings.limit,
                    gen_kwargs=None if settings.max_new_tokens is None else {"max_gen_toks": settings.max_new_tokens},
                    confirm_run_unsafe_code=settings.allow_model_code,
                    **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"), settings.seed),
                )
            except AssertionError as error:
                option = "--seq-length" if task == _AUTOMATA else "--max-tokens"
                raise NCAPluginError(f"{task}: {one_line(error)} ({option} sets how many)") from error
        # Types, functions and other values that JSON does not have become text.
        values: dict[str, Any] = json.loads(json.dumps(found, default=str))
        add_errors(values)
        return values

    def version(self, task: str) -> str:
        """Return the version of a task's definition. Results of two versions do not compare."""
        return str(self._tasks[task].leaves[0].VERSION)


def _check_programs(name: str, settings: Settings) -> None:
    """Raise `NCAPluginError` unless the task's programs may run and will run in the sandbox."""
    if not name.startswith(_OURS):
        raise NCAPluginError(
            f"task {name} runs programs that the model has written, but not in the sandbox: use nca_humaneval, or run "
            "lm_eval itself"
        )
    if not settings.allow_model_code:
        raise NCAPluginError(
            f"task {name} runs programs that the model has written: allow it with --allow-model-code; they run in a "
            "sandbox"
        )
    check_sandbox()


def task_examples(task: str, data: str | None = None) -> list[Example]:
    """Return the training examples of a task, with the prompts and answers that the task uses. For a group, return
    those of all its tasks.

    Args:
        data: see `Settings`.

    Raises:
        NCAPluginError: lm-eval does not have the task, its data cannot be loaded, or it has no training split.
    """
    settings = Settings(data={} if data is None else {task: data})
    examples = []
    with _quiet():
        for leaf in _load(_manager([task]), task, _overrides(task, settings)).leaves:
            if not leaf.has_training_docs():
                raise NCAPluginError(f"task {leaf.config.task} has no training split to make examples of")
            for doc in leaf.training_docs():
                answer = f"{leaf.config.target_delimiter}{leaf.doc_to_target(doc)}"
                examples.append(Example(leaf.doc_to_text(doc), answer))
    return examples


def _manager(tasks: Sequence[str]) -> "TaskManager":
    require("lm_eval")
    from lm_eval.tasks import TaskManager

    # Reading the thousands of tasks that lm-eval brings takes seconds.
    return TaskManager(include_path=str(_TASKS), include_defaults=not all(name.startswith(_OURS) for name in tasks))


def _overrides(name: str, settings: Settings) -> dict[str, Any]:
    """Return the entries of a task's file that the settings replace."""
    overrides: dict[str, Any] = {}
    if settings.num_samples is not None:
        overrides["repeats"] = settings.num_samples
    place = settings.data.get(name)
    if name == _AUTOMATA:
        return {**overrides, "dataset_kwargs": {"uri": place or "nca://web", "seq_length": settings.seq_length}}
    if place is None:
        if name == _PROMPT_ANSWER:
            raise NCAPluginError(f"task {name} has no data set of its own: name your JSONL file with --data")
        return overrides
    path = Path(place)
    if path.is_dir():
        return {**overrides, "dataset_path": place, "dataset_kwargs": dict(_READ_ANEW)}
    with in_context(f"data of task {name}"):
        # The package datasets would exit at some lines that are not objects, and take most other files for text.
        num_rows = len(read_examples(path)) if name == _PROMPT_ANSWER else sum(1 for _ in read_rows(path))
        if not num_rows:
            raise NCAPluginError(f"{path} holds no row")
    splits = dict.fromkeys(("test_split", "training_split"), "test")
    if "::" in str(path.resolve()):
        raise NCAPluginError(f"data of task {name}: datasets takes the '::' in {path} for an archive: rename it")
    # datasets would also take a name for a pattern.
    files = {"data_files": {"test": glob.escape(str(path.resolve()))}}
    return {**overrides, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files, **splits}


def _load(manager: "TaskManager", name: str, overrides: dict[str, Any]) -> "_Loaded":
    # TaskManager.load() calls this too, but then the tasks of a group get no overrides.
    from lm_eval.tasks._factory import TaskFactory

    index = manager.task_index
    if name not in index:
        raise NCAPluginError(unknown_name("task", name, index, "lm-eval ls tasks lists all"))
    with _quiet():
        try:
            built = TaskFactory().build(index[name], overrides=overrides, registry=index)
        except NCAPluginError:
            raise
        except Exception as error:  # lm-eval and datasets raise errors of many classes
            raise NCAPluginError(f"task {name} cannot be loaded: {one_line(error.__cause__ or error)}") from error
    evaluated = built if isinstance(built, list) else [built]
    leaves = [task for item in evaluated for task in (item.get_all_tasks() if hasattr(item, "add") else [item])]
    for leaf in leaves:
        _check_fields(leaf)
    return _Loaded(leaves, evaluated)


def _check_fields(task: "Task") -> None:
    """Raise `NCAPluginError` if rows lack a field that a task names; lm-eval would use the name itself as the text."""
    for name in (task.config.doc_to_text, task.config.doc_to_target):
        if isinstance(name, str) and name.isidentifier() and name not in task.features:
            fields = shown_names(list(task.features))
            raise NCAPluginError(f"data of task {task.config.task}: rows have no field '{name}' (fields: {fields})")


def _model(folder: Path, settings: Settings) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # lm-eval would silently use the CPU if the device does not exist.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NCAPluginError(f"--device {device} cannot be used: {one_line(error).partition('. ')[0]}") from error
    try:
        # dtype="auto" keeps a float32 checkpoint in float32, so that rounding does not change the result.
        # The path is absolute, because lm-eval would look up `a/b` on the hub.
        return HFLM(pretrained=str(folder.resolve()), device=device, batch_size=settings.batch_size, dtype="auto")
    # transformers raises errors of any class.
    except Exception as error:
        raise NCAPluginError(f"model {folder} cannot be loaded: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of lm-eval, transformers and datasets about their settings, and all bars but that of the
    answers."""
    import datasets
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        # Failures are raised as errors anyway.
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.enable_progress_bars()
        transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
