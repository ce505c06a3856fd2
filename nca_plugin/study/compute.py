"""Checks that Megatron accepts the arguments of a study's runs, and their compute as Megatron counts it."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import complete_files
from nca_plugin.launch.check import ArgumentSet, check_argument_sets
from nca_plugin.launch.configuration import unset_options
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.study.corpus import StudyCorpus
from nca_plugin.study.design import CorpusConfig, Study, num_tokens
from nca_plugin.study.plan import LanguageKey, Plan, task_runs, unprepared
from nca_plugin.study.run import Run, digest_of, megatron_options
from nca_plugin.study.sweep import Chosen, any_choice

#: The file in a study's folder that stores the outcome of these checks.
CHECKED: Final = "checked.json"
#: Equal compute is matched to one part in this many of the language stage.
_EXTRA_STEPS: Final = 100
#: Arguments that name files which may not exist yet.
_OF_TEXT: Final = ("train-data-path", "valid-data-path", "data-cache-path")


@dataclass(frozen=True)
class Compute:
    """The compute of the runs, as Megatron counts it.

    Attributes:
        stage1: floating-point operations per token of a training step, by arm.
        language: the same by domain.
        parameters: number of parameters of the largest model; None if Megatron does not report it.
    """

    stage1: dict[str, float]
    language: dict[str, float]
    parameters: int | None

    def extra_updates(self, plan: Plan, domain: str, arm: str, chosen: Chosen) -> int:
        """Return how many language updates take the compute of an arm's stage 1, to 1 % of the run's length."""
        updates = plan.language_updates(domain, chosen)
        flops = num_tokens(plan.study, "stage1", plan.study.arms[arm].tokens) * self.stage1[arm]
        tokens = num_tokens(plan.study, "language", plan.study.domains[domain].tokens)
        extra = flops / self.language[domain] * updates / tokens
        # Rounded, so that arms with almost equal compute share one baseline run.
        step = max(1, updates // _EXTRA_STEPS)
        return max(1, round(extra / step)) * step


def checked(study: Study, *, is_run: bool) -> Compute:
    """Check that Megatron accepts the arguments of all runs, and return their compute.

    Args:
        is_run: whether the study is run, so that its folder may store the outcome.

    Raises:
        NCAPluginError: Megatron refuses arguments. The message names the part of the study file.
    """
    config, plan = study.config, unprepared(study.config)
    seed, chosen = config.seeds[0], any_choice(config)
    first = next(iter(chosen.values()))
    runs: dict[tuple[str, str], Run] = {}
    for arm in config.arms:
        if not config.arms[arm].is_scratch:
            runs["stage1", arm] = plan.stage1(arm, seed, first)
        for domain in config.domains:
            runs[f"domains.{domain}", f"arms.{arm}"] = plan.language(LanguageKey(domain, arm, seed), first)
    for key, run in task_runs(plan, chosen).items():
        if run.tuning is not None and key.seed == seed:
            runs[f"tasks.{key.task}", f"arms.{key.arm}, domains.{key.domain}"] = run
    for (domain, number), run in plan.sweep().items():
        runs[f"domains.{domain}", f"sweep, combination {number + 1}"] = run
    for (domain, arm, number), run in plan.stage1_sweep(chosen).items():
        runs[f"domains.{domain}, arms.{arm}", f"stage1_sweep, combination {number + 1}"] = run
    sets = [_argument_set(run) for run in runs.values()]
    # Most arms have the same arguments for Megatron.
    unique = list({digest_of(asdict(arguments)): arguments for arguments in sets}.values())
    outcomes = _outcomes(study, unique, is_run)
    flops, parameters = {}, []
    for name, arguments in zip(runs, sets, strict=True):
        outcome = outcomes[unique.index(arguments)]
        if "error" in outcome:
            raise NCAPluginError(f"study file {study.path}: {', '.join(name)}: {outcome['error']}")
        flops[name] = outcome["flops_per_token"]
        parameters.append(outcome["parameters"])
    for domain in config.domains:
        for arm in config.arms:
            if flops[f"domains.{domain}", f"arms.{arm}"] != flops[f"domains.{domain}", f"arms.{config.baseline}"]:
                raise NCAPluginError(
                    f"study file {study.path}: arms.{arm}: its model takes other compute per token than that of "
                    f"{config.baseline}: all arms of a study must have the same model"
                )
    return Compute(
        stage1={name[1]: value for name, value in flops.items() if name[0] == "stage1"},
        language={domain: flops[f"domains.{domain}", f"arms.{config.baseline}"] for domain in config.domains},
        parameters=None if None in parameters else max(parameters),
    )


def check_lengths(plan: Plan, compute: Compute) -> None:
    """Raise `NCAPluginError` if a text has too few tokens for the runs on it."""
    study, chosen = plan.study, any_choice(plan.study)
    for name, domain in study.domains.items():
        wanted, why = plan.language_tokens(name), ""
        if study.equal_compute:
            keys = [
                LanguageKey(name, study.baseline, 1, extra)
                for extra in (compute.extra_updates(plan, name, arm, chosen[name]) for arm in compute.stage1)
            ]
            longest = max((plan.language(key, chosen[name]).tokens for key in keys), default=0)
            if longest > wanted:
                wanted, why = longest, " for the baseline of equal compute, which equal_compute=false leaves out"
        with in_context(f"domains.{name}"):
            _check_length(plan.corpora[name], domain.corpus, wanted, why)
    for name, text in plan.texts.items():
        corpus = study.arms[name].text
        assert corpus is not None
        with in_context(f"arms.{name}.text"):
            _check_length(text, corpus, plan.stage1_tokens(name), "")


def _check_length(text: StudyCorpus, corpus: CorpusConfig, wanted: int, why: str) -> None:
    if wanted > text.train_tokens * corpus.epochs:
        raise NCAPluginError(
            f"the budget is {wanted:,} tokens{why}; the text has {text.train_tokens:,} to train on"
            + (f" (times {corpus.epochs:g} epochs)" if corpus.epochs != 1 else "")
            + ": add text, lower tokens, or allow repetition with corpus.epochs"
        )


def _argument_set(run: Run) -> ArgumentSet:
    # The files of examples exist already.
    missing = () if run.tuning is not None else _OF_TEXT
    options = {name: value for name, value in megatron_options(run).items() if name not in missing}
    # The outputs of a run do not exist yet, and the check must not create them.
    options |= {"load": None, "save": None, "pretrained-checkpoint": None, "tensorboard-dir": None}
    return ArgumentSet(megatron_arguments(options), unset_options(run.arguments))


def _outcomes(study: Study, sets: list[ArgumentSet], is_run: bool) -> list[dict[str, Any]]:
    """Return the outcome of each argument set. It is stored if all are right, because the check takes 15 seconds."""
    path = study.output / CHECKED
    key = digest_of([asdict(arguments) for arguments in sets])
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            known: list[dict[str, Any]] = stored["outcomes"]
            return known
    outcomes = check_argument_sets(sets, study.config.devices_per_run)
    if is_run and not any("error" in outcome for outcome in outcomes):
        with complete_files(path) as (unfinished,):
            unfinished.write_text(json.dumps({"key": key, "outcomes": outcomes}))
    return outcomes
