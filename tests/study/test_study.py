"""A study before it runs: what it refuses, what arms share, and its text."""

import dataclasses
import fcntl
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from rich.console import Console
from studies import DEMO, STUDY, config_of, plan_of, write_letters

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.probes.windows import IndexedText
from nca_plugin.study import estimate
from nca_plugin.study.all_runs import all_runs
from nca_plugin.study.allowed_changes import check_changes
from nca_plugin.study.compute import Compute, check_lengths
from nca_plugin.study.corpus import StudyCorpus, study_corpus
from nca_plugin.study.design import CorpusConfig, num_tokens, num_updates
from nca_plugin.study.file import load_study
from nca_plugin.study.plan import LanguageKey, unprepared
from nca_plugin.study.run import megatron_options
from nca_plugin.study.study import run_study
from nca_plugin.study.sweep import Chosen, any_choice, best_number, concerns_stage1, swept_arms
from nca_plugin.text.prepare import prepare

# The study file.


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("outptu=x", "did you mean 'output'"),
        ("seeds=[]", "seeds must be"),
        ("seeds=[1,1]", "seeds must be"),
        ("~arguments.seq-length", "arguments.seq-length is missing"),
        ("baseline=scrath", "unknown arm 'scrath': did you mean 'scratch'"),
        ("baseline=dyck", "baseline 'dyck' has a stage 1"),
        ("arms.ncahigh.tokens=1M", "unknown arm 'ncahigh': did you mean 'nca-high'"),
        ("domains.pyton.tokens=1M", "unknown domain 'pyton': did you mean 'python'"),
        ("+tasks.t={domains: [pyton]}", "tasks.t: unknown domain 'pyton': did you mean 'python'"),
        (
            "+tasks.t={epochs: 2}",
            "tasks.t: arguments and epochs belong to tuning: name the examples to tune on with train",
        ),
        ("+tasks.t={train: none.jsonl}", "tasks.t: train: none.jsonl cannot be read"),
        ("+tasks.t={arguments: {seed: 3}}", "tasks.t.arguments.seed: leave it out, the study sets it"),
        ("+tasks.t={tsak: nca_gsm8k}", "did you mean 'tasks.t.task'"),
        ("arms.dyck.source=dick://", "arms.dyck: unknown source 'dick': did you mean 'dyck'"),
        ("arms.dyck.source='dyck://?k=64&seed=1'", "leave out seed"),
        ("arms.dyck.reinit=[atention]", "unknown selector 'atention'"),
        ("arms.dyck.schedule=decaid", "unknown schedule 'decaid': did you mean 'decayed'"),
        ("arms.dyck.tokns=1", "unknown key 'arms.dyck.tokns'"),
        ("arms.scratch.schedule=constant", "only a stage 1 has these, so name a source or text"),
        ("arms.scratch.preset=matched", "takes over from a stage 1"),
        ("arms.dyck.preset=scratch", "leave out its stage 1"),
        ("language.tokens=409_601", "language.tokens 409,601: is not a multiple of 2,048 tokens, a global batch"),
        ("arms.dyck.tokens=1M", "the nearest multiples are 999424 and 1001472"),
        ("stage1.tokens=many", "stage1.tokens 'many': must be a whole number"),
        ("language.validation_tokens=100", "language.validation_tokens 100: is not a multiple of 256"),
        ("arguments.train-iters=5", "arguments.train-iters: leave it out, it follows from the budget"),
        ("language.arguments.save=x", "language.arguments.save: leave it out, the study sets it"),
        ("arms.dyck.arguments.seq-length=128", "it is that of every run"),
        ("arms.dyck.arguments.global-batch-size=4", "so that all arms have the same"),
        ("sweep.arguments.lr=1e-3", "sweep.arguments.lr"),
        ("sweep.seed=2", "sweep.seed 2: must be 1 or more, and not in seeds"),
        ("sweep.seed=0", "sweep.seed 0: must be 1 or more"),
        ("arms.scratch.language_arguments.lr=1e-3", "sweep.arguments.lr: baseline 'scratch' has its own"),
        ("arms.scratch.reinit=[mlp]", "only a stage 1 has these, so name a source or text"),
        ("language.arguments.init-method-std=0.1", "set it in arguments, or in those of an arm"),
        ("arms.dyck.stage1_arguments.init-method-std=0.1", "set it in arguments, or in those of an arm"),
        ("stage1.arguments.min-lr=0.1", "leave it out, and name a schedule"),
        ("language.arguments.lr-warmup-iters=5", "would not follow the budget"),
        ("arguments.lr-decay-iters=5", "would not follow the budget"),
        ("arguments.global-batch-size=0", "arguments.global-batch-size is missing, or is not a whole number"),
        (
            "stage1.arguments.global-batch-size=x",
            "stage1.arguments.global-batch-size is missing, or is not a whole number",
        ),
        ("language.arguments.global-batch-size=8.5", "or is not a whole number of 1 or more"),
        ("domains.python.paper=openwebtxt", "did you mean 'openwebtext'"),
        ("domains.python.corpus.path=nowhere", "name its inputs, or the path"),
        ("~domains.python", "domains is empty"),
        ("parallel_runs=0", "parallel_runs must be at least 1"),
    ],
)
def test_a_wrong_study_is_refused(override: str, reason: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        load_study(STUDY, [override])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_studies_come_with_the_package() -> None:
    assert load_study(Path("demo"), []).config == config_of(path=DEMO)
    assert config_of("seeds=[4]", "+arms.new={source: 'copy://'}").arms["new"].source == "copy://"


def test_the_papers_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gsm8k", "bigbench_lite"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1 + 1 =", "answer": " 2"}')
    overrides = ["+tasks=[gsm8k,bigbench_lite,humaneval]", "tasks.gsm8k.samples=8"]
    tasks = config_of(*overrides, path=Path("paper_openwebmath")).tasks
    assert {name: (task.epochs, task.arguments) for name, task in tasks.items()} == {
        "gsm8k": (10, {"lr": 1e-5}),
        "bigbench_lite": (1, {"lr": 5e-6}),
        "humaneval": (1, {}),
    }
    assert (tasks["gsm8k"].samples, tasks["humaneval"].allow_model_code) == (8, True)


@pytest.mark.parametrize("name", ["paper_openwebtext", "paper_openwebmath", "paper_codeparrot"])
@pytest.mark.parametrize(("scale", "layers"), [("1b6", 24), ("400m", 24), ("160m", 12), ("laptop", 4)])
def test_the_papers_studies_at_every_scale(name: str, scale: str, layers: int) -> None:
    config = config_of(f"scale={scale}", path=Path(name))
    (domain,) = config.domains
    assert (config.arguments["num-layers"], config.domains[domain].paper) == (layers, domain)
    if scale == "1b6":
        updates = {"paper_openwebtext": 17_204, "paper_openwebmath": 7_992, "paper_codeparrot": 23_995}
        assert num_updates(config, "language") == updates[name]
        assert num_tokens(config, "language") == updates[name] * 512 * 1024
    if scale != "laptop":
        assert num_updates(config, "stage1") == 5000
        assert num_tokens(config, "stage1") == 5000 * 32 * 1024


# What arms share.


def test_arms_that_differ_later_share_stage_1() -> None:
    plan = plan_of()
    chosen = any_choice(plan.study)["python"]
    folders = {arm: plan.stage1(arm, 1, chosen).folder for arm in ("nca-high", "nca-high-no-attention", "nca-low")}
    assert folders["nca-high"] == folders["nca-high-no-attention"] != folders["nca-low"]
    assert plan.stage1("nca-high", 2, chosen).folder != folders["nca-high"]
    compute = Compute({arm: 1.0 for arm in plan.study.arms if arm != "scratch"}, {"python": 1.0}, 1)
    runs = all_runs(plan, compute, {"python": chosen})
    # 3 templates, 9 of the sweep; for each of 3 seeds 4 of stage 1, 6 arms and the longer baseline.
    assert len(runs) == 3 + 9 + 3 * (4 + 6 + 1)


def test_the_sweeps_best_is_that_of_every_arm_but_for_stage_1s_learning_rate() -> None:
    plan = plan_of("stage1.arguments.lr=1e-3", "arms.dyck.language_arguments.lr=5e-4")
    scratch = plan.study.arms["scratch"]
    assert plan.template(scratch, Chosen({"lr": 1.0})) == plan.template(scratch, Chosen())
    chosen = Chosen({"lr": 0.008, "embedding-init-method-std": 1.0})
    stage1 = plan.stage1("nca-high", 1, chosen).arguments
    assert (stage1["lr"], stage1["embedding-init-method-std"]) == (1e-3, 1.0)
    for arm, lr in (("scratch", 0.008), ("nca-high", 0.008), ("dyck", 5e-4)):
        arguments = plan.language(LanguageKey("python", arm, 1), chosen).arguments
        assert (arguments["lr"], arguments["embedding-init-method-std"]) == (lr, 1.0)


def test_arms_of_a_seed_have_the_same_data_and_new_values() -> None:
    plan = plan_of()
    runs = [plan.language(LanguageKey("python", arm, 3), Chosen()) for arm in plan.study.arms]
    assert {run.arguments["seed"] for run in runs} == {3}
    assert {run.start.transition.seed for run in runs if run.start} == {3}
    differing = {json.dumps({**run.arguments}, sort_keys=True) for run in runs}
    assert len(differing) == 1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("decayed", {"lr-decay-style": "cosine", "lr-warmup-iters": 20, "lr-decay-iters": 200}),
        ("constant", {"lr-decay-style": "constant", "lr-warmup-iters": 20, "lr-decay-iters": 200}),
        # Its whole length is the warm-up of a schedule ten times as long.
        ("release", {"lr-decay-style": "cosine", "lr-warmup-iters": 200, "lr-decay-iters": 2000}),
    ],
)
def test_schedules_of_stage_1(schedule: str, expected: dict[str, Any]) -> None:
    arguments = plan_of(f"stage1.schedule={schedule}").stage1("dyck", 1, Chosen()).arguments
    assert expected.items() <= arguments.items()
    assert "--lr-warmup-fraction" not in megatron_arguments(arguments)


def test_scratch_as_released_goes_through_the_same_path() -> None:
    plan = plan_of("+arms.released={preset: release}")
    for arm, preset, reinit in (("scratch", "scratch", ()), ("released", "release", ("all",))):
        start = plan.language(LanguageKey("python", arm, 1), Chosen()).start
        assert start is not None
        assert (start.transition.preset, tuple(start.transition.reinit)) == (preset, reinit)
        assert start.origin.iterations == 1


def test_other_texts_are_other_runs() -> None:
    plan = plan_of("+arms.a={text: {inputs: [a.txt]}}", "+arms.b={text: {inputs: [b.txt]}}")
    assert plan.stage1("a", 1, Chosen()).folder != plan.stage1("b", 1, Chosen()).folder


def test_a_sweeps_run_that_diverges_is_the_worst() -> None:
    assert best_number(dict(enumerate((3.0, math.nan, 2.5)))) == 2
    assert best_number(dict(enumerate((math.inf, math.nan)))) == 0


def test_a_sweep_of_the_batch_size_keeps_the_number_of_tokens() -> None:
    plan = plan_of("sweep.arguments={global-batch-size: [2, 8, 16], lr: [1e-3], embedding-init-method-std: [0.3]}")
    runs = list(plan.sweep().values())
    assert [run.arguments["global-batch-size"] for run in runs] == [2, 8, 16]
    # A micro-batch is never larger than the global batch.
    assert [run.arguments["micro-batch-size"] for run in runs] == [2, 8, 8]
    assert len({run.tokens for run in runs}) == 1 and len({run.iterations for run in runs}) == 3
    chosen = Chosen({"global-batch-size": 2})
    keys = [LanguageKey("python", arm, 1) for arm in plan.study.arms]
    assert {plan.language(key, chosen).iterations for key in keys} == {runs[0].iterations}
    assert plan.stage1("dyck", 1, chosen).arguments["global-batch-size"] == 8


def test_stage_1_is_swept_for_each_stage_1_that_has_no_value_of_its_own() -> None:
    plan = plan_of("stage1_sweep.arguments={lr: [1e-3, 2e-3]}", "arms.dyck.stage1_arguments={lr: 5e-4}")
    assert swept_arms(plan.study) == ["nca-low", "nca-high", "nca-high-no-attention", "shuffled"]
    runs = plan.stage1_sweep({"python": Chosen()})
    # Arms with the same stage 1 share its runs.
    assert len(runs) == 8 and len({run.folder for run in runs.values()}) == 6
    assert {run.arguments["seed"] for run in runs.values()} == {1000}
    # On the sweep's own seed, also for an arm whose stage 1 is shared by all seeds.
    shared = plan_of("stage1_sweep.arguments={lr: [1e-3]}", "arms.nca-high.stage1_seed=1").stage1_sweep(
        {"python": Chosen()}
    )
    assert shared["python", "nca-high", 0].identity == shared["python", "nca-high-no-attention", 0].identity
    chosen = Chosen(stage1={"nca-low": {"lr": 2e-3}})
    assert [plan.stage1(arm, 1, chosen).arguments["lr"] for arm in ("nca-low", "dyck")] == [2e-3, 5e-4]


def test_one_stage_1_can_serve_all_seeds() -> None:
    plan = plan_of("arms.nca-low.stage1_seed=7")
    starts = [plan.language(LanguageKey("python", "nca-low", seed), Chosen()).start for seed in (1, 2)]
    first, second = (start.origin for start in starts if start is not None)
    assert first == second and first.arguments["seed"] == 7 and "seed=7" in first.arguments["data-source"]
    assert [start.transition.seed for start in starts if start is not None and start.transition is not None] == [1, 2]


def test_equal_compute_counts_operations() -> None:
    plan = plan_of()
    compute = Compute({"nca-high": 2.0, "dyck": 3.0}, {"python": 6.0}, 1)
    # 200 updates at a third and at half of a language update's cost, in steps of 2.
    assert compute.extra_updates(plan, "python", "nca-high", Chosen()) == 66
    assert compute.extra_updates(plan, "python", "dyck", Chosen()) == 100


def test_a_result_does_not_depend_on_where_its_files_are() -> None:
    keys = [LanguageKey("python", arm, 1) for arm in ("scratch", "nca-high", "nca-high-no-attention")]
    here, there = plan_of("output=here"), plan_of("output=there")
    identities = [here.language(key, Chosen()).identity for key in keys]
    assert identities == [there.language(key, Chosen()).identity for key in keys]
    assert len(set(identities)) == 3


# Text.


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("text") / "letters")


def documents_of(prefix: str) -> list[bytes]:
    return [np.asarray(document).astype(np.uint16).tobytes() for document in IndexedDataset(prefix)]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_documents_are_held_out_once_and_none_of_them_dominates(text: Path, tmp_path: Path, is_prepared: bool) -> None:
    config = CorpusConfig(inputs=[str(text)])
    if is_prepared:
        prepared = prepare(config.corpus(), tmp_path / "own")
        config = CorpusConfig(path=str(prepared.prefix), vocab_size=prepared.vocab_size)
    corpus = study_corpus(config, tmp_path / "corpus", 1000, lambda _: None)
    everything = sorted(documents_of(str(tmp_path / ("own" if is_prepared else "corpus/text"))))
    train, validation = documents_of(corpus.train), documents_of(corpus.validation)
    # One token more, which is a target only.
    assert sum(len(document) // 2 for document in validation) == corpus.validation_tokens + 1 == 1001
    assert sum(len(document) // 2 for document in train) == corpus.train_tokens
    assert len(train) + len(validation) == 40
    assert len(validation) == corpus.validation_documents == 30
    assert max(map(len, validation)) // 2 == 34
    # Each is the beginning of a document that is not trained on.
    rest = list(everything)
    for document in train:
        rest.remove(document)
    assert len(rest) == 30 and all(any(whole.startswith(part) for whole in rest) for part in validation)
    # They lie apart in the text's file, and an evaluation reads them one after the other.
    read = IndexedText(corpus.validation).read
    assert np.concatenate([read(0, 500), read(500, 501)]).astype(np.uint16).tobytes() == b"".join(validation)
    ids = np.concatenate([np.frombuffer(document, np.uint16) for document in validation])[1:]
    assert corpus.validation_bytes == (None if is_prepared else (ids < 256).sum())
    # It is not made again.
    assert study_corpus(config, tmp_path / "corpus", 1000, pytest.fail) == corpus  # type: ignore[arg-type]


def test_text_below_a_folder_that_is_a_link(text: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "here").symlink_to(tmp_path / "far" / "away")
    prepared = prepare(CorpusConfig(inputs=[str(text)]).corpus(), tmp_path / "own")
    config = CorpusConfig(path=str(prepared.prefix), vocab_size=prepared.vocab_size)
    corpus = study_corpus(config, tmp_path / "here" / "corpus", 1000, lambda _: None)
    assert len(documents_of(corpus.train)) + len(documents_of(corpus.validation)) == 40


def test_too_little_text_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match=r"is too short: of 11,840 tokens in 40 documents"):
        study_corpus(CorpusConfig(inputs=[str(text)]), tmp_path / "corpus", 11_900, lambda _: None)


def test_a_text_shorter_than_the_budget_is_refused() -> None:
    plan = plan_of()
    short = dataclasses.replace(plan, corpora={"python": StudyCorpus(Path("x"), 257, 500_000, 16_384)})
    compute = Compute({"nca-high": 1.0}, {"python": 1.0}, 1)
    with pytest.raises(NCAPluginError, match=r"budget is 819,200 tokens for the baseline of equal.*has 500,000"):
        check_lengths(short, compute)
    check_lengths(dataclasses.replace(short, study=config_of("equal_compute=false")), compute)
    with pytest.raises(NCAPluginError, match=r"domains.python: the budget is 614,400 tokens; the text has 500,000"):
        check_lengths(
            dataclasses.replace(short, study=config_of("equal_compute=false", "language.tokens=614_400")), compute
        )
    check_lengths(dataclasses.replace(short, study=config_of("domains.python.corpus.epochs=2")), compute)


# A study that goes on.


def settings(*overrides: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config_of(*overrides))))
    return values


@pytest.mark.parametrize(
    "override",
    [
        *("seeds=[1,2,3,4]", "parallel_runs=1", "runs_per_device=2", "~arms.dyck", "+arms.new={source: 'copy://'}"),
        "arms.dyck.label=D",
    ],
)
def test_a_study_may_grow(override: str) -> None:
    check_changes(settings(), settings(override))


def test_a_study_of_a_version_without_a_setting_goes_on() -> None:
    before = settings()
    del before["runs_per_device"]
    check_changes(before, settings("runs_per_device=2"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("language.tokens=614_400", "language.tokens was 409600, is 614400"),
        ("arms.dyck.source='dyck://?k=8'", "arms.dyck.source was dyck://?k=64, is dyck://?k=8"),
        ("arguments.lr=1e-4", "arguments.lr was 0.004, is 0.0001"),
        ("arguments.swiglu=true", "arguments.swiglu was absent, is True"),
        ("domains.python.corpus.pattern='*.txt'", "domains.python.corpus.pattern was *.py, is *.txt"),
    ],
)
def test_a_study_that_has_changed_is_refused(override: str, reason: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        check_changes(settings(), settings(override))
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(NCAPluginError, match="is not the folder of a study"):
        run_study(load_study(DEMO, [f"output={tmp_path}"]), Silence())
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NCAPluginError, match="another process runs this study"):
            run_study(load_study(DEMO, [f"output={tmp_path}"]), Silence())


class Silence:
    def expect(self, total: int) -> None: ...
    def start(self, name: str, total: int) -> None: ...
    def update(self, name: str, done: int) -> None: ...
    def finish(self, name: str, message: str) -> None: ...
    def note(self, message: str) -> None: ...


def test_no_two_runs_write_one_index_cache(tmp_path: Path) -> None:
    """Megatron writes its files in place, and asks only whether they exist."""
    study = config_of(f"output={tmp_path}", "sweep.arguments={lr: [1e-3, 2e-3]}")
    plan = unprepared(study)
    arms = [name for name, arm in study.arms.items() if not arm.is_scratch]
    compute = Compute(dict.fromkeys(arms, 1.0), dict.fromkeys(study.domains, 1.0), 1)
    runs = all_runs(plan, compute, any_choice(study))
    caches = {run.folder: megatron_options(run).get("data-cache-path") for run in runs if run.corpus is not None}
    assert len(caches) > len(study.arms) and len(set(caches.values())) == len(caches) and None not in caches.values()
    with pytest.raises(
        NCAPluginError, match=r"arguments\.data-cache-path: leave it out, each run has a cache of its own"
    ):
        config_of("++arguments.data-cache-path=cache")


def test_a_small_batch_fits_every_run_and_its_ranks() -> None:
    plan = plan_of("arguments.global-batch-size=4")
    shape = plan.template(plan.study.arms["scratch"], Chosen())
    runs = [shape, plan.stage1("nca-low", 1, Chosen()), plan.language(LanguageKey("python", "scratch", 1), Chosen())]
    assert [run.arguments["micro-batch-size"] for run in runs] == [4, 4, 4]
    two = plan_of("arguments.global-batch-size=4", "devices_per_run=2").stage1("nca-low", 1, Chosen())
    assert two.arguments["micro-batch-size"] == 2


def test_a_sweep_does_not_choose_a_shared_stage_1() -> None:
    shared = ("stage1_sweep.arguments={lr: [1e-3]}", "stage1_sweep.seed=7", "arms.nca-low.stage1_seed=7")
    with pytest.raises(NCAPluginError, match=r"arms\.nca-low: stage1_seed 7: is the seed of stage1_sweep"):
        config_of(*shared)


def test_a_sweep_concerns_stage_1_if_it_changes_the_initialisation() -> None:
    assert concerns_stage1(config_of().sweep)
    assert not concerns_stage1(config_of("~sweep.arguments.embedding-init-method-std").sweep)


def test_times_and_tables_of_an_estimate() -> None:
    seconds = (8.9e-6 * 3600, 3, 42, 90, 7500, 2e6)
    assert [estimate.duration(value) for value in seconds] == ["0.032 s", "3 s", "42 s", "1.5 min", "2.1 h", "23 days"]
    part = estimate.CostItem("language", 2, 1000, 10**6, 4e13)
    needs = estimate.Needs([part], None, None, None, {}, at_a_time=2)

    def shown(*rates: float | None) -> str:
        with (console := Console(width=200)).capture() as said:
            console.print(estimate.tables(needs, *rates)[0])
        return said.get()

    with_cpu = shown(None, 1.0)
    # 62 s of operations at 65 %, and two starts and 1,000 updates side by side.
    assert "this CPU" in with_cpu and "1.7 min" in with_cpu and "0.1 s" in with_cpu
    assert "this CPU" not in shown(None) and "20 s" in shown(2.0)
    assert 1e-4 < estimate.cpu_teraflops() < 1e3
