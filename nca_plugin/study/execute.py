"""One run of a study, from its start checkpoint to its result. After any interruption, the same call continues."""

import contextlib
import json
import os
import re
import shlex
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import nca_plugin
from nca_plugin import launch
from nca_plugin.checkpoint.saves import mend_saves, newest_save
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import complete_files, try_lock
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.probes.retrieval import LEAST_SEQ_LENGTH
from nca_plugin.study.curves import Curve
from nca_plugin.study.rank_processes import SECONDS_BETWEEN_LOOKS, Place, StoppedError, run_processes
from nca_plugin.study.run import Question, Run, megatron_options
from nca_plugin.tasks.lm_eval_results import task_metrics
from nca_plugin.transition.transfer import transfer

_RESULT: Final = "result.json"
_LOG: Final = "log.txt"
_EVALUATION: Final = "evaluation.json"
_LOCK: Final = "lock"
#: Folder of a run's results on tasks, and the label of its model there.
_TASKS: Final = "tasks"
_MODEL: Final = "model"
#: Number of held-out passages that a trained model is to find again.
_RETRIEVAL_SAMPLES: Final = 32
_ITERATION: Final = re.compile(r"iteration\s+(\d+)/\s*(\d+) \|.*?elapsed time per iteration \(ms\): ([\d.]+)")
_PROGRESS: Final = re.compile(rb"iteration\s+(\d+)/")
#: A validation loss during training, or after it, where Megatron adds the name of the set. Several sets are numbered.
_VALIDATION: Final = re.compile(
    r"validation(?:-0)? loss at iteration (\d+)( on validation set)? \| lm loss value: (\S+) \|"
)
_TAIL_BYTES: Final = 1 << 14


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        validation: (update, mean loss in nats per supervised held-out token) of each evaluation.
        evaluation: what `nca_plugin.launch.evaluate` found, or a task's metrics as `task_metrics` returns them; None
            for a run that is not evaluated.
        seconds: time of its updates.
    """

    validation: list[tuple[int, float]]
    evaluation: dict[str, Any] | None
    seconds: float

    @property
    def final_loss(self) -> float:
        """The loss of the last evaluation."""
        return self.validation[-1][1]


def curve_of(run: Run, result: Result) -> Curve:
    """Return the held-out losses of a run against the tokens that it was trained on."""
    return [(updates * run.tokens_per_update, loss) for updates, loss in result.validation]


def read_result(run: Run) -> Result | None:
    """Return the result of a run, None if it is not complete.

    Raises:
        NCAPluginError: the folder holds the result of a run with other settings.
    """
    path = run.folder / _RESULT
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NCAPluginError(f"{path} cannot be read ({error}): remove {run.folder} to have it done again") from error
    _check_identity(run, stored["identity"])
    return Result([(int(i), float(v)) for i, v in stored["validation"]], stored["evaluation"], stored["seconds"])


def is_complete(run: Run) -> bool:
    """Whether the folder of a run holds a result."""
    return (run.folder / _RESULT).is_file()


def updates_done(run: Run) -> int:
    """Return the number of updates that a run has done, read from its log if it is not complete."""
    if is_complete(run):
        return run.iterations
    try:
        with (run.folder / _LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            found = _PROGRESS.findall(log.read())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def execute(run: Run, place: Place) -> Result:
    """Do what is missing of a run, and return its result.

    It continues from its last checkpoint. If another process does the same run, this waits for it.

    Raises:
        NCAPluginError: the run failed. The message holds the last line of its log and names the log.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with _lock(run, place):
        result = read_result(run)
        if result is None:
            result = _execute(run, place)
        _remove_finished(run)
    return result


def _execute(run: Run, place: Place) -> Result:
    _claim(run)
    start = run.start
    if start is not None and start.transition is not None and not run.start_checkpoint.is_dir():
        with in_context(f"start of {run.title}"):
            transfer(start.origin.checkpoint, run.start_checkpoint, start.transition)
    if run.iterations:
        curve, seconds = _train(run, place)
    else:
        curve, seconds = [], 0.0
    evaluation = None
    if run.is_evaluated:
        evaluation = _evaluate(run, megatron_arguments(megatron_options(run)), place)
    if run.question is not None:
        evaluation = _ask(run, run.question, place)
    result = Result(curve, evaluation, seconds)
    with complete_files(run.folder / _RESULT) as (unfinished,):
        unfinished.write_text(json.dumps({"identity": run.identity, **asdict(result)}, indent=1))
    return result


def _train(run: Run, place: Place) -> tuple[list[tuple[int, float]], float]:
    """Do the missing updates of a run. Return the validation losses, and the seconds that all updates took."""
    checkpoint, damage = newest_save(run.checkpoint)
    done = None if checkpoint is None else int(checkpoint.folder.name.removeprefix("iter_"))
    mend_saves(run.checkpoint, done, damage)
    arguments = megatron_arguments(megatron_options(run))
    log = run.folder / _LOG
    curve, _ = read_log(log)
    is_validated = run.arguments.get("eval-iters") != 0
    if (done or 0) < run.iterations or (is_validated and run.iterations not in dict(curve)):
        # An earlier start may have been killed while it wrote the cache, and Megatron only checks that files exist.
        shutil.rmtree(run.index_cache, ignore_errors=True)
        run_processes(launch.MEGATRON, arguments, place, run.title, log)
    curve, milliseconds = read_log(log)
    _check_curve(run, curve, log)
    return curve, statistics.median(milliseconds) / 1000 * run.iterations if milliseconds else 0.0


def _check_curve(run: Run, curve: list[tuple[int, float]], log: Path) -> None:
    """Raise `NCAPluginError` if the log lacks an evaluation, whose line may be lost if the machine crashes."""
    if run.arguments.get("eval-iters") == 0 and run.corpus is None:
        return
    interval = run.arguments["eval-interval"]
    missing = {*range(interval, run.iterations + 1, interval), run.iterations} - {updates for updates, _ in curve}
    if missing:
        raise NCAPluginError(
            f"{run.title}: {log} lacks the validation loss of update {min(missing)}: remove {run.folder} to have it "
            "done again"
        )


def _evaluate(run: Run, arguments: list[str], place: Place) -> dict[str, Any]:
    out = run.folder / _EVALUATION
    if not out.is_file():
        own = ["--evaluation-out", str(out)]
        if run.source is not None:
            own += ["--evaluation-source", run.source]
        if run.corpus is not None:
            own += ["--evaluation-data", run.corpus.validation]
            if run.arguments["seq-length"] >= LEAST_SEQ_LENGTH:
                own += ["--retrieval-samples", str(_RETRIEVAL_SAMPLES)]
        run_processes(launch.EVALUATE, [*arguments, *own], place, run.title, run.folder / "evaluation.txt")
    evaluation: dict[str, Any] = json.loads(out.read_text())
    return evaluation


def question_arguments(run: Run, question: Question) -> list[str]:
    """Return the arguments of `nca-plugin` that evaluate the model of a run, or of the run that it starts from."""
    assert run.start is not None
    checkpoint = run.checkpoint if run.iterations else run.start.origin.checkpoint
    arguments = ["eval", f"{_MODEL}={checkpoint}", "--out", str(run.folder / _TASKS)]
    arguments += ["--tasks", question.task, "--tokenizer", question.tokenizer, *question.options]
    return arguments if question.data is None else [*arguments, "--data", f"{question.task}={question.data}"]


def commands(run: Run) -> list[str]:
    """Return the commands that repeat a run by hand, after the runs that it starts from."""
    found = []
    if run.start is not None and run.start.transition is not None:
        transition = run.start.transition
        options = [f"--preset {transition.preset}", *(f"--keep {s}" for s in transition.keep)]
        options += [f"--reinit {s}" for s in transition.reinit]
        found.append(
            f"nca-plugin transfer --from {run.start.origin.checkpoint} --to {run.start_checkpoint} {' '.join(options)} "
            f"--vocab-size {transition.vocab_size} --seed {transition.seed}"
        )
    if run.iterations:
        arguments = shlex.join(megatron_arguments(megatron_options(run)))
        found.append(f"python -m nca_plugin.launch.megatron {arguments}")
    if run.question is not None:
        found.append(shlex.join(["nca-plugin", *question_arguments(run, run.question)]))
    return found


def _ask(run: Run, question: Question, place: Place) -> dict[str, Any]:
    """Return the metrics of the trained model on a task, with their standard errors."""
    alone = replace(place, ranks=1)
    run_processes(nca_plugin.__name__, question_arguments(run, question), alone, run.title, run.folder / "tasks.txt")
    found = json.loads((run.folder / _TASKS / _MODEL / f"{question.task}.json").read_text())
    return task_metrics(found, question.task)


def _claim(run: Run) -> None:
    """Write the run's identity to its folder, so that a run with other settings does not use its checkpoints."""
    mark = run.folder / "run.json"
    if mark.is_file():
        _check_identity(run, json.loads(mark.read_text())["identity"])
        return
    with complete_files(mark) as (unfinished,):
        unfinished.write_text(json.dumps({"identity": run.identity, "title": run.title}, indent=1))


def _check_identity(run: Run, identity: str) -> None:
    if identity != run.identity:
        raise NCAPluginError(
            f"{run.folder} holds a run with other settings than {run.title} has now: remove it to have it done again, "
            "or choose another output=..."
        )


def read_log(path: Path) -> tuple[list[tuple[int, float]], list[float]]:
    """Return the validation losses in a run's log, as (update, nats per token), and the times of updates in ms.

    After a restart, updates since the last save occur twice, with the same losses. The evaluation that Megatron does
    after the last update counts only if there was none at that update.
    """
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return [], []
    losses: dict[int, float] = {}
    after: dict[int, float] = {}
    for match in _VALIDATION.finditer(text):
        (after if match[2] else losses)[int(match[1])] = float(match[3])
    return sorted({**after, **losses}.items()), [float(match[3]) for match in _ITERATION.finditer(text)]


def _remove_finished(run: Run) -> None:
    """Remove all checkpoints but the last, or all if the run is not kept."""
    for folder in (run.start_checkpoint, run.index_cache):
        shutil.rmtree(folder, ignore_errors=True)
    last = f"iter_{run.iterations:07d}" if run.is_kept else None
    for path in run.checkpoint.glob("*iter_*"):
        if path.is_dir() and path.name != last:
            shutil.rmtree(path)


@contextlib.contextmanager
def _lock(run: Run, place: Place) -> Iterator[None]:
    with (run.folder / _LOCK).open("w") as file:
        try:
            while not try_lock(file):
                # A job that a scheduler has started before this one may have it.
                if place.stop.wait(SECONDS_BETWEEN_LOOKS):
                    raise StoppedError(f"{run.title}: stopped")
        except OSError as error:
            raise NCAPluginError(
                f"output is on a file system without locks ({error.strerror}): choose another with output=..."
            ) from error
        yield
