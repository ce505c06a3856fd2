"""Real runs of studies: their results, and what killing them changes."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from places import DATA
from studies import DEMO, plan_of, write_letters

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.study.corpus import StudyCorpus
from nca_plugin.study.execute import _check_curve, execute, read_log, read_result, updates_done
from nca_plugin.study.file import load_study
from nca_plugin.study.hydra_jobs import run_as_jobs
from nca_plugin.study.plan import LanguageKey, TaskKey, unprepared
from nca_plugin.study.power import power_tables
from nca_plugin.study.rank_processes import Place, _environment, _error_line
from nca_plugin.study.run import megatron_options
from nca_plugin.study.sweep import Chosen

SMALL = [
    *("arguments.hidden-size=32", "arguments.seq-length=128", "arguments.max-position-embeddings=128"),
    *("arguments.eval-iters=1", "language.validation_tokens=2048", "language.evaluations=5", "stage1.tokens=10240"),
    *("language.tokens=40960", "domains.python.corpus.pattern='[a-c]*.py'", "~arms.dyck", "equal_compute=false"),
    # The best is the second.
    *("~arms.nca-high", "sweep.arguments={lr: [1e-5, 4e-3]}", "sweep.tokens=10240"),
    # Only a Llama can be asked.
    "arguments.swiglu=true",
    f"+tasks.pairs={{data: {DATA}/pairs_test.jsonl, train: {DATA}/pairs_train.jsonl, epochs: 2, samples: 2, "
    "max_tokens: 4, arguments: {lr: 1e-3}}",
]


def command_of(output: Path, *overrides: str) -> list[str]:
    return [*(sys.executable, "-m", "nca_plugin", "study", str(DEMO), f"output={output}"), *SMALL, *overrides]


def results_of(output: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((output / "results.json").read_text())
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "study"
    subprocess.run(command_of(output), check=True)
    return output


def test_a_log_of_a_run_that_was_killed(tmp_path: Path) -> None:
    """Losses after the last save are there twice, and a line is torn."""
    line = " validation-0 loss at iteration {} | lm loss value: {:.6E} | lm loss PPL: 1.0E+00 | \n"
    log = tmp_path / "log.txt"
    log.write_text(
        line.format(5, 3.0)
        + line.format(10, 2.5)
        + " [2026-01-01] iteration       12/      20 | consumed: 96 | elapsed time per iteration (ms): 40.0 | x\n"
        + " validation-0 loss at iteration 15 | lm lo"
        + "\nstarted again\n"
        + line.format(10, 2.5)
        + line.format(15, 2.25)
        + line.format("20 on validation set", 2.125)
        + line.format("20 on test set", 9.0)
    )
    curve, milliseconds = read_log(log)
    assert curve == [(5, 3.0), (10, 2.5), (15, 2.25), (20, 2.125)]
    assert milliseconds == [40.0]


def test_a_log_without_all_evaluations_is_no_result(tmp_path: Path) -> None:
    run = plan_of(f"output={tmp_path}").language(LanguageKey("python", "scratch", 1), Chosen())
    every = [(updates, 2.0) for updates in range(20, 201, 20)]
    _check_curve(run, every, tmp_path)
    with pytest.raises(NCAPluginError, match=r"lacks the validation loss of update 60: remove .*/seed1/python/scratch"):
        _check_curve(run, [point for point in every if point[0] != 60], tmp_path)


def test_an_error_is_that_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("OSError: disk quota exceeded\n")
    began = log.stat().st_size
    with log.open("a") as file:
        file.write("training\n")
    assert _error_line(log, 0) == "OSError: disk quota exceeded"
    assert _error_line(log, began) == "training"


def test_a_study_runs_and_reports(finished: Path) -> None:
    values = results_of(finished)
    rows = {row["arm"]: row for row in values["language"]}
    assert rows.keys() == {"scratch", "nca-high-no-attention"}
    for row in rows.values():
        assert [tokens for tokens, _ in row["validation"]] == [8192, 16384, 24576, 32768, 40960]
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert 2.5 < row["loss"] < math.log(384)
        assert len(row["induction"]["scores"]) == 2
        assert row["retrieval"]["distances"][0] == 0
        # The documents are those that are evaluated during training, although they lie apart in the text's file.
        # Megatron puts them in another order, so that the first tokens of some follow others.
        tokens, losses = map(sum, zip(*row["documents"], strict=True))
        assert len(row["documents"]) == 30 and tokens == 2048
        assert losses / tokens == pytest.approx(row["loss"], abs=0.01)
    assert rows["scratch"]["difference"] == 0 and rows["scratch"]["speed_up"] == 1
    (stage1,) = values["stage1"]
    assert stage1["arms"] == ["nca-high-no-attention"]
    # The first frame of 38 tokens is never predicted: 128 - 37 targets of 128 count.
    assert stage1["supervised_tokens"] == 10240 * 91 // 128
    assert len(stage1["in_context"]["patch"]) == len(stage1["in_context"]["frames"])
    assert values["summary"]["python"]["nca-high-no-attention"]["verdict"] == "few seeds"
    assert values["domains"]["python"]["best_arguments"] == {"lr": 4e-3}
    assert values["sweep"]["tokens"] == 2 * 10_240
    assert (finished / "report.html").stat().st_size > 10_000


def test_the_models_are_tuned_on_tasks_and_asked(finished: Path) -> None:
    (tuned,) = results_of(finished)["tasks"]
    # 90 examples, twice, in batches of 8.
    assert (tuned["name"], tuned["task"], tuned["domain"]) == ("pairs", "nca_prompt_answer", "python")
    assert tuned["updates"] == 23
    assert list(tuned["summary"]) == ["scratch", "nca-high-no-attention"]
    for metrics in tuned["summary"].values():
        assert list(metrics) == ["pass@1", "pass@2"]
        assert 0 <= metrics["pass@1"]["mean"] <= 1
    run = finished / "runs" / "seed1" / "python" / "scratch-pairs"
    arguments, ask = tuned["runs"][0]["commands"]
    assert f"--pretrained-checkpoint {run.with_name('scratch')}/checkpoint " in arguments and "--lr 0.001 " in arguments
    assert ask.startswith(f"nca-plugin eval model={run}/checkpoint --out {run}/tasks --tasks nca_prompt_answer ")
    log = (run / "log.txt").read_text()
    assert f"fine-tuning on 90 examples of {DATA}/pairs_train.jsonl" in log
    page = (finished / "report.html").read_text()
    assert "<h2>Tasks</h2>" in page and "pairs (nca_prompt_answer), models of python, tuned for 23 updates" in page


def test_without_examples_the_model_of_the_language_run_is_asked(finished: Path) -> None:
    overrides = [
        f"output={finished}",
        *SMALL,
        f"+tasks.untuned={{data: {DATA}/pairs_test.jsonl, samples: 1, limit: 3}}",
    ]
    plan = unprepared(load_study(DEMO, overrides).config)
    language = plan.language(LanguageKey("python", "scratch", 1), Chosen({"lr": 4e-3}))
    run = plan.task(TaskKey("untuned", "python", "scratch", 1), Chosen({"lr": 4e-3}))
    result = execute(run, Place())
    assert run.iterations == 0 and not run.checkpoint.exists()
    assert result.validation == [] and result.evaluation is not None and list(result.evaluation) == ["pass@1"]
    found = json.loads((run.folder / "tasks" / "model" / "nca_prompt_answer.json").read_text())
    assert found["nca_plugin"]["checkpoint"] == str((language.checkpoint / "iter_0000040").resolve())
    shutil.rmtree(run.folder)


def test_no_checkpoint_but_the_last_is_left(finished: Path) -> None:
    for run in (finished / "runs" / "seed1").rglob("result.json"):
        assert len(list((run.parent / "checkpoint").glob("iter_*"))) == 1
        assert not (run.parent / "start").exists()


def test_a_study_that_is_killed_ends_with_the_same_results(finished: Path, tmp_path: Path) -> None:
    """What comes before is that of the finished study."""
    output = tmp_path / "study"
    shutil.copytree(finished, output, symlinks=True)
    language = output / "runs" / "seed1" / "python" / "scratch"
    shutil.rmtree(language)
    (output / "results.json").unlink()
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command_of(output), stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        # In the middle of a language run, after its first save.
        while not (language / "checkpoint" / "latest_checkpointed_iteration.txt").exists():
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(started, 10)
    assert not alive
    assert not (language / "result.json").exists()
    subprocess.run(command_of(output), check=True)
    killed, undisturbed = results_of(output), results_of(finished)
    for values in (killed, undisturbed):
        for name in ("timings", "command"):
            values.pop(name)
    assert json.dumps(killed).replace(str(output), "") == json.dumps(undisturbed).replace(str(finished), "")


def test_a_changed_study_is_one_line(finished: Path) -> None:
    done = subprocess.run(command_of(finished, "arguments.lr=1e-3"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "arguments.lr was 0.004, is 0.001" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_argument_that_megatron_has_not_is_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    command = command_of(tmp_path / "study", "language.arguments.lr-decay-stile=cosine")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "arms.scratch: unknown option '--lr-decay-stile': did you mean '--lr-decay-style'?" in line
    assert not (tmp_path / "study" / "runs").exists()
    # Put right, the same folder will do.
    load_study(DEMO, [f"output={tmp_path / 'study'}"])


def test_runs_as_jobs_of_submitit(finished: Path, tmp_path: Path) -> None:
    study = load_study(DEMO, [f"output={tmp_path}", *SMALL]).config
    run = unprepared(study).template(study.arms["scratch"], Chosen())
    run_as_jobs([run], ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"], 1, tmp_path / "jobs")
    assert read_result(run) is not None and updates_done(run) == 1
    assert execute(run, Place()) == read_result(run)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["hydra/launcher=submitit_slrm"], "nca-plugin[slurm]"),
        (["hydra/launcher=submitit_local", "hydra.launcher.partitoin=gpu"], "partitoin"),
        (["hydra/launcher=submitit_local", "hydra.launcher.nodes=2"], "nodes and tasks_per_node must be 1"),
    ],
)
def test_a_wrong_launcher_is_one_line(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError) as error:
        run_as_jobs([], overrides, 1, tmp_path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_folder_with_another_run_is_refused(finished: Path) -> None:
    study = load_study(DEMO, [f"output={finished}", *SMALL, "arms.scratch.language_arguments.clip-grad=0.5"]).config
    corpus = StudyCorpus(finished / "corpus" / "domains" / "python", 257, 1, 1)
    plan = dataclasses.replace(unprepared(study), corpora={"python": corpus})
    run = plan.language(LanguageKey("python", "scratch", 1), Chosen())
    with pytest.raises(NCAPluginError, match="holds a run with other settings"):
        read_result(run)
    assert "--pretrained-checkpoint" in megatron_arguments(megatron_options(run))


def test_power_of_a_study(finished: Path, tmp_path: Path) -> None:
    """One seed has no spread: what is shown is in units of it."""
    assert len(power_tables(tmp_path)) == len(power_tables(finished)) == 1
    values = results_of(finished)
    values["seeds"] = [1, 2, 3]
    noise = {"deviation": 0.01, "freedom": 2, "unequal_spread": 1.0, "held_out": None}
    values["domains"]["python"]["noise"] = noise
    (tmp_path / "results.json").write_text(json.dumps(values))
    table, _ = power_tables(tmp_path)
    assert [list(column.cells) for column in table.columns][:2] == [["python"], ["0.0100"]]
    # For two arms, 2 % are 0.0202 nats, 1.43 deviations of the paired difference: Cohen's tables say 7 pairs.
    assert [list(column.cells) for column in table.columns][4] == ["7"]
    noise["held_out"] = {"value": 0.01**2, "freedom": 29.0}
    (tmp_path / "results.json").write_text(json.dumps(values))
    table, _ = power_tables(tmp_path)
    assert [list(column.cells) for column in table.columns][4] == ["over 10,000"]


def test_environment_of_ranks_is_not_inherited_from_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TORCHELASTIC_RUN_ID", "other")
    environment = _environment(1, "2000", Place(2, 3, ["4", "5"]))
    assert "TORCHELASTIC_RUN_ID" not in environment
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["OMP_NUM_THREADS"]) == ("1", "2", "3")
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5"


@pytest.mark.slow
def test_a_study_of_parallel_runs_on_two_texts(finished: Path, tmp_path: Path) -> None:
    """Two ranks a run, tensor-parallel, a text as stage 1, and a sweep. From scratch the losses are those of
    one rank, to float32's sums; a stage 1 starts from values of Megatron's, which depend on TP.
    """
    text = write_letters(tmp_path / "text")
    overrides = [
        *("devices_per_run=2", "arguments.tensor-model-parallel-size=2", "parallel_runs=1", "equal_compute=true"),
        # Megatron pads a vocabulary to a multiple of this times TP, and the rows that are added take part in the loss.
        "arguments.make-vocab-size-divisible-by=64",
        f"+domains.letters={{corpus: {{inputs: [{text}], epochs: 10}}, tokens: 10240}}",
        f"+arms.text={{text: {{inputs: [{text}], epochs: 10}}, tokens: 10240}}",
    ]
    output = tmp_path / "study"
    subprocess.run(command_of(output, *overrides), check=True)
    values, alone = results_of(output), results_of(finished)
    assert values["domains"]["python"]["best_arguments"] == {"lr": 4e-3}
    assert values["sweep"]["tokens"] == 2 * 2 * 10_240
    losses, expected = (
        {
            (row["domain"], row["arm"]): row["loss"]
            for row in of["language"]
            if row["extra_updates"] == 0 and row["arm"] == "scratch"
        }
        for of in (values, alone)
    )
    for key, loss in expected.items():
        assert losses[key] == pytest.approx(loss, abs=2e-3)
    assert len([row for row in values["language"] if row["extra_updates"]]) == 2
    assert {tuple(row["arms"]) for row in values["stage1"]} == {("nca-high-no-attention",), ("text",)}
