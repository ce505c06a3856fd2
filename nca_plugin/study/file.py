"""Reading a study file, and refusing what is wrong in it before anything starts."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Final

from nca_plugin.configuration.hydra_files import checked_by, compose_file, find_file
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.study.design import (
    SCHEDULES,
    ArmConfig,
    CorpusConfig,
    StageName,
    Study,
    StudyConfig,
    SweepConfig,
    TaskConfig,
    num_updates,
    seeded,
    validation_tokens,
)
from nca_plugin.study.paper import FIGURES
from nca_plugin.study.sweep import combinations
from nca_plugin.suggestions import unknown_name, unknown_names
from nca_plugin.text.examples import read_examples
from nca_plugin.transition.presets import PRESETS
from nca_plugin.transition.selectors import check_selectors

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
#: Arguments of stage 1's schedule, which a study file sets by the name of the schedule.
_SCHEDULED: Final = ("lr-decay-style", "lr-warmup-fraction", "min-lr")

_OVERRIDE: Final = re.compile(r"(?P<key>\w+)(\.(?P<name>[^.=]+))?[.=]")

#: Settings of an arm that belong to a stage 1.
_OF_STAGE1: Final = ("tokens", "schedule", "stage1_arguments", "stage1_seed", "keep", "reinit")

#: Megatron-LM arguments that a study file must not set, and why.
_REFUSED: Final = {
    **dict.fromkeys(("save", "load", "pretrained-checkpoint", "tensorboard-dir", "seed"), "the study sets it"),
    **dict.fromkeys(("train-iters", "train-samples", "eval-interval"), "it follows from the budget in tokens"),
    **dict.fromkeys(
        ("lr-decay-iters", "lr-decay-samples", "lr-wsd-decay-iters", "lr-wsd-decay-samples", "lr-warmup-samples"),
        "it would not follow the budget; a schedule is as long as its stage",
    ),
    "lr-warmup-iters": "it would not follow the budget: give lr-warmup-fraction",
    **dict.fromkeys(("eval-micro-batch-size", "eval-global-batch-size"), "held-out text is read one sample at a time"),
    "data-cache-path": "each run has a cache of its own, so that none writes what another reads",
    **dict.fromkeys(
        ("data-path", "train-data-path", "valid-data-path", "split", "data-source"), "name a source or text"
    ),
    **dict.fromkeys(("tokenizer-type", "tokenizer-model", "vocab-size"), "name corpus.tokenizer"),
    **dict.fromkeys(
        ("finetune", "ckpt-step", "skip-train", "full-validation", "multiple-validation-sets", "freeze-list"),
        "the study decides it",
    ),
    **dict.fromkeys(
        ("no-save-optim", "no-save-rng", "no-load-optim", "no-load-rng"),
        "a run that is killed could not continue as if it had not been",
    ),
    **dict.fromkeys(
        ("exit-interval", "exit-duration-in-mins", "phase-transition-iterations", "exit-signal-handler"),
        "it ends a run before it is complete",
    ),
}


def load_study(path: Path, overrides: list[str]) -> Study:
    """Return the study in a Hydra file with overrides such as `seeds=[1,2,3]`.

    Args:
        path: a file, or the bare name of one that comes with the package, such as `demo`.

    Raises:
        NCAPluginError: a missing file, an unknown key, a value of the wrong type, or parts that do not fit together.
    """
    name, path = str(path), find_file(path, "study")
    launcher = tuple(override for override in overrides if override.startswith(("hydra/launcher=", "hydra.launcher.")))
    own = [override for override in overrides if override not in launcher]
    added = [override for override in own if override.startswith("+")]
    values = compose_file(path, path.parent, [_opened(override, path, added) for override in own])
    with in_context(f"study file {path}"):
        config = checked_by(StudyConfig, values)
        _check(config)
    return Study(name, path, tuple(own), config, launcher)


def _opened(override: str, path: Path, added: list[str]) -> str:
    """Return an override that may also set what the file leaves out. Names are checked against the schema later.

    Args:
        added: the overrides that add to the file.

    Raises:
        NCAPluginError: it sets a value of an arm, domain or task that does not exist. A new one is added with a plus
            sign, as in +arms.new={}.
    """
    match = _OVERRIDE.match(override)
    if match is None or match["key"] not in {field.name for field in dataclasses.fields(StudyConfig)}:
        return override
    if match["key"] in ("arms", "domains", "tasks") and match["name"] is not None:
        known = compose_file(path, path.parent, added).get(match["key"]) or {}
        if match["name"] not in known:
            kind = match["key"].removesuffix("s")
            raise NCAPluginError(f"{override}: {unknown_name(kind, match['name'], map(str, known))}")
    return f"++{override}"


def _check(study: StudyConfig) -> None:
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 1:
        raise NCAPluginError("seeds must be one or more different numbers, 1 or more")
    for section, arguments in (
        ("arguments", study.arguments),
        ("stage1.arguments", {**study.arguments, **study.stage1.arguments}),
        ("language.arguments", {**study.arguments, **study.language.arguments}),
    ):
        for name in ("global-batch-size", "micro-batch-size", "seq-length"):
            if type(arguments.get(name)) is not int or arguments[name] < 1:
                raise NCAPluginError(f"{section}.{name} is missing, or is not a whole number of 1 or more")
    for name in ("parallel_runs", "devices_per_run", "runs_per_device"):
        if getattr(study, name) < 1:
            raise NCAPluginError(f"{name} must be at least 1")
    if study.runs_per_device > 1 and study.devices_per_run > 1:
        raise NCAPluginError(
            f"runs_per_device {study.runs_per_device}: must be 1 if devices_per_run is {study.devices_per_run}: "
            "a rank that waits for others of its run would hold up the other run on its device"
        )
    for name in ("stage1", "language"):
        if getattr(study, name).evaluations < 1:
            raise NCAPluginError(f"{name}.evaluations must be at least 1")
    for kind in ("domains", "arms", "tasks"):
        for name in getattr(study, kind):
            if not _NAME.fullmatch(name):
                raise NCAPluginError(f"{kind}.{name}: it becomes the name of a folder: use letters, digits and _ . + -")
    if len(study.arms) < 2:
        raise NCAPluginError("arms must be two or more, to compare")
    if study.baseline not in study.arms:
        raise NCAPluginError(f"baseline: {unknown_name('arm', study.baseline, study.arms)}")
    if not study.arms[study.baseline].is_scratch:
        raise NCAPluginError(f"baseline '{study.baseline}' has a stage 1: name an arm without source and text")
    if not study.domains:
        raise NCAPluginError("domains is empty: name a text to train on")
    _check_arguments(study)
    for name, domain in study.domains.items():
        with in_context(f"domains.{name}"):
            if domain.paper is not None and domain.paper not in FIGURES:
                raise NCAPluginError(unknown_name("corpus of the paper", domain.paper, FIGURES))
            _check_corpus(domain.corpus)
            num_updates(study, "language", domain.tokens)
    validation_tokens(study)
    _check_sweeps(study)
    for name, arm in study.arms.items():
        with in_context(f"arms.{name}"):
            _check_arm(study, arm)
    for name, task in study.tasks.items():
        with in_context(f"tasks.{name}"):
            _check_task(study, task)


def _check_task(study: StudyConfig, task: TaskConfig) -> None:
    unknown = [domain for domain in task.domains if domain not in study.domains]
    if unknown:
        raise NCAPluginError(unknown_names("domain", unknown, study.domains))
    if task.train is None:
        if task.arguments or task.epochs != 1:
            raise NCAPluginError("arguments and epochs belong to tuning: name the examples to tune on with train")
        return
    if task.epochs <= 0:
        raise NCAPluginError("epochs must be above 0")
    with in_context("train"):
        read_examples(Path(task.train))


def _check_arm(study: StudyConfig, arm: ArmConfig) -> None:
    if arm.preset not in PRESETS:
        raise NCAPluginError(unknown_name("preset", arm.preset, PRESETS))
    check_selectors((*arm.keep, *arm.reinit))
    schedule = study.stage1.schedule if arm.schedule is None else arm.schedule
    if schedule not in SCHEDULES:
        raise NCAPluginError(unknown_name("schedule", schedule, SCHEDULES))
    if arm.stage1_seed is not None and arm.stage1_seed < 1:
        raise NCAPluginError(f"stage1_seed {arm.stage1_seed}: must be 1 or more")
    if study.stage1_sweep.arguments and arm.stage1_seed == study.stage1_sweep.seed:
        raise NCAPluginError(f"stage1_seed {arm.stage1_seed}: is the seed of stage1_sweep, which would choose it")
    if arm.is_scratch:
        given = [name for name in _OF_STAGE1 if getattr(arm, name)]
        if given:
            raise NCAPluginError(f"{', '.join(given)}: only a stage 1 has these, so name a source or text")
        if arm.preset not in ("default", "scratch", "release", "release-fixed"):
            raise NCAPluginError(f"preset {arm.preset} takes over from a stage 1: name a source or text")
        return
    if arm.source is not None and arm.text is not None:
        raise NCAPluginError("source and text are both a stage 1: name one")
    if arm.preset == "scratch":
        raise NCAPluginError("preset scratch takes nothing over: leave out its stage 1")
    num_updates(study, "stage1", arm.tokens)
    if arm.text is not None:
        with in_context("text"):
            _check_corpus(arm.text)
    if arm.source is not None:
        if "seed=" in arm.source:
            raise NCAPluginError("source: leave out seed, which each run sets itself")
        seeded(arm.source, study.seeds[0]).check_seq_length(study.arguments["seq-length"])


def _check_corpus(corpus: CorpusConfig) -> None:
    if (corpus.path is None) == (not corpus.inputs):
        raise NCAPluginError("corpus: name its inputs, or the path of a prepared text")
    if (corpus.path is None) != (corpus.vocab_size is None):
        raise NCAPluginError("corpus.vocab_size is the vocabulary size for corpus.path: give both or none")
    if corpus.path is not None and not Path(f"{corpus.path}.idx").is_file():
        raise NCAPluginError(f"corpus.path {corpus.path}: {corpus.path}.idx does not exist")
    if corpus.epochs <= 0:
        raise NCAPluginError("corpus.epochs must be above 0")


def _check_arguments(study: StudyConfig) -> None:
    sections: dict[str, dict[str, Any]] = {
        "arguments": study.arguments,
        "stage1.arguments": study.stage1.arguments,
        "language.arguments": study.language.arguments,
        "sweep.arguments": study.sweep.arguments,
        "stage1_sweep.arguments": study.stage1_sweep.arguments,
        **{f"domains.{name}.arguments": domain.arguments for name, domain in study.domains.items()},
        **{f"tasks.{name}.arguments": task.arguments for name, task in study.tasks.items()},
    }
    for name, arm in study.arms.items():
        for kind in ("arguments", "stage1_arguments", "language_arguments"):
            sections[f"arms.{name}.{kind}"] = getattr(arm, kind)
    for section, arguments in sections.items():
        for name in arguments:
            if name in _REFUSED:
                raise NCAPluginError(f"{section}.{name}: leave it out, {_REFUSED[name]}")
            if "init-method" in name and not _is_of_both_stages(section):
                raise NCAPluginError(f"{section}.{name}: set it in arguments, or in those of an arm, for both stages")
            if name in _SCHEDULED and "stage1" in section:
                raise NCAPluginError(f"{section}.{name}: leave it out, and name a schedule: {', '.join(SCHEDULES)}")
            if section != "arguments" and name == "seq-length":
                raise NCAPluginError(f"{section}.{name}: set it in arguments, it is that of every run")
            if section.partition(".")[0] in ("domains", "arms", "tasks") and name == "global-batch-size":
                raise NCAPluginError(f"{section}.{name}: set it for the stage, so that all arms have the same")


def _check_sweeps(study: StudyConfig) -> None:
    baseline = study.arms[study.baseline]
    of_baseline = baseline.arguments | baseline.language_arguments
    sweeps: tuple[tuple[str, SweepConfig, StageName], ...] = (
        ("sweep", study.sweep, "language"),
        ("stage1_sweep", study.stage1_sweep, "stage1"),
    )
    for section, sweep, stage in sweeps:
        if not sweep.arguments:
            continue
        for name, values in sweep.arguments.items():
            if not isinstance(values, list) or not values:
                raise NCAPluginError(f"{section}.arguments.{name} must be a list of values to try")
            if stage == "language" and name in of_baseline:
                raise NCAPluginError(
                    f"sweep.arguments.{name}: baseline '{study.baseline}' has its own value, which overrides the sweep"
                )
        if sweep.seed < 1 or sweep.seed in study.seeds:
            raise NCAPluginError(
                f"{section}.seed {sweep.seed}: must be 1 or more, and not in seeds: it would choose what it measures"
            )
        parts = study.domains if stage == "language" else study.arms
        budgets = [*(part.tokens for part in parts.values()), *([] if sweep.tokens is None else [sweep.tokens])]
        for arguments in combinations(sweep):
            with in_context(f"{section}, {' '.join(f'{name} {value}' for name, value in arguments.items())}"):
                for tokens in budgets:
                    num_updates(study, stage, tokens, arguments)


def _is_of_both_stages(section: str) -> bool:
    kind, _, rest = section.partition(".")
    return kind in ("arguments", "sweep") or (kind == "arms" and rest.endswith(".arguments"))
