"""Chains of stages: what is next, as the files tell; what a killed job leaves; one real chain that is killed."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from places import CHECKPOINTS, ROOT
from training_jobs import Job, train
from typer.testing import CliRunner

from nca_plugin.chain import next_stage as files
from nca_plugin.chain.check import _check_rows, check_once, check_stages
from nca_plugin.chain.next_stage import StageState, mend, survey
from nca_plugin.chain.stages import Chain, TransitionConfig, load_chain
from nca_plugin.chain.table import commands
from nca_plugin.checkpoint import saves
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.commands.app import app
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.transfer import transfer

REPOSITORY = ROOT
SCRIPTS = REPOSITORY / "scripts"
#: A small checkpoint that stands for any stage's.
SAVED = CHECKPOINTS / "core016"

STAGES: dict[str, dict[str, Any]] = {
    "one": {"train_iters": 8},
    "two": {"train_iters": 12, "transition": {"preset": "attention-only"}},
    "three": {"train_iters": 4},
}


def chain_of(tmp_path: Path, stages: dict[str, dict[str, Any]] | None = None, **values: Any) -> Chain:
    """A chain in `tmp_path/chain`, read from a file."""
    content = {
        "folder": str(tmp_path / "chain"),
        "arguments": {"save-interval": 4},
        "stages": STAGES if stages is None else stages,
        **values,
    }
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_chain(path, [])


def save(folder: Path, iteration: int, origin: Path = SAVED) -> Path:
    """What Megatron leaves when it has saved an iteration."""
    path = folder / f"iter_{iteration:07d}"
    shutil.copytree(origin, path)
    (folder / TRACKER).write_text(str(iteration))
    return path


def save_other(folder: Path, iteration: int, tmp_path: Path) -> Path:
    """An iteration with other weights."""
    transfer(SAVED, tmp_path / "other", Transition(preset="scratch", seed=5))
    return save(folder, iteration, tmp_path / "other" / "release")


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return chain_of(tmp_path)


def described(chain: Chain) -> list[str]:
    return [state.described for state in survey(chain)]


def state_of(chain: Chain, name: str) -> StageState:
    return next(state for state in survey(chain) if state.stage.name == name)


def make_start(chain: Chain, number: int) -> None:
    stage = chain.stages[number]
    assert stage.start is not None
    transfer(chain.stages[number - 1].folder, stage.start, stage.transition)


def test_what_is_next_from_the_first_to_the_last_moment(chain: Chain) -> None:
    one, two, three = chain.stages
    assert described(chain) == ["ready to start", "waiting", "waiting"]
    save(one.folder, 4)
    assert described(chain) == ["at iteration 4 of 8", "waiting", "waiting"]
    save(one.folder, 8)
    assert described(chain) == ["complete", "waiting", "waiting"]
    make_start(chain, 1)
    assert described(chain) == ["complete", "ready to start", "waiting"]
    save(two.folder, 12)
    make_start(chain, 2)
    save(three.folder, 4)
    assert described(chain) == ["complete", "complete", "complete"]


def test_what_the_next_stage_needs_no_more_may_be_removed(chain: Chain) -> None:
    one, two, _ = chain.stages
    save(one.folder, 8)
    make_start(chain, 1)
    shutil.rmtree(one.folder)
    assert described(chain) == ["complete, and removed", "ready to start", "waiting"]
    save(two.folder, 4)
    assert two.start is not None
    shutil.rmtree(two.start)
    assert described(chain) == ["complete, and removed", "at iteration 4 of 12", "waiting"]


@pytest.mark.parametrize(
    ("tracker", "damage"),
    [
        ("", "is empty"),
        ("\0\0", "is empty"),
        ("iter", "holds 'iter'"),
        ("12", "names iter_0000012, which is missing"),
        ("8", "names iter_0000008, which is not complete"),
        (None, "is missing"),
    ],
)
def test_a_damaged_tracker_file_falls_back_to_the_newest_complete_iteration(
    chain: Chain, tracker: str | None, damage: str
) -> None:
    folder = chain.stages[0].folder
    save(folder, 2)
    save(folder, 4)
    (save(folder, 8) / "__0_1.distcp").write_bytes(b"cut")
    if tracker is None:
        (folder / TRACKER).unlink()
    else:
        (folder / TRACKER).write_text(tracker)
    state = state_of(chain, "one")
    assert (state.iteration, state.is_complete, state.damage) == (4, False, damage)
    mend(state)
    assert (folder / TRACKER).read_text() == "4"
    state = state_of(chain, "one")
    assert (state.iteration, state.damage) == (4, None)


def test_a_tracker_file_without_any_complete_iteration_is_removed(chain: Chain) -> None:
    folder = chain.stages[0].folder
    (save(folder, 4) / ".metadata").unlink()
    (folder / TRACKER).write_text("")
    assert state_of(chain, "one").iteration is None
    lines = mend(state_of(chain, "one"))
    assert not (folder / TRACKER).exists() and "no complete checkpoint" in lines[-1]
    assert mend(state_of(chain, "one")) == []


def test_an_unfinished_save_is_removed_before_the_next_one_writes_into_it(chain: Chain) -> None:
    folder = chain.stages[0].folder
    kept = save(folder, 2)
    unfinished = save(folder, 4)
    for name in (".metadata", "metadata.json"):
        (unfinished / name).unlink()
    # Of a run with more ranks.
    (unfinished / "__7_0.distcp").write_bytes(b"")
    (folder / TRACKER).write_text("2")
    (line,) = mend(state_of(chain, "one"))
    assert "unfinished" in line and not unfinished.exists()
    assert kept.is_dir() and mend(state_of(chain, "one")) == []


def test_a_complete_iteration_that_the_tracker_file_does_not_name_is_kept(chain: Chain) -> None:
    """It may be linked to the next stage's start checkpoint, or wanted by whoever went back."""
    folder = chain.stages[0].folder
    for _ in range(2):
        save(folder, 2) if not (folder / "iter_0000002").exists() else None
        save(folder, 4)
        (folder / TRACKER).write_text("2")
        mend(state_of(chain, "one"))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["iter_0000002", TRACKER, "replaced_iter_0000004", "replaced_iter_0000004_1"]
    assert read_checkpoint(folder / "replaced_iter_0000004").tensors


def test_a_checkpoint_that_cannot_be_read_now_is_no_unfinished_save(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = chain.stages[0].folder
    save(folder, 4)

    def fail(_: Path) -> None:
        error = NCAPluginError("checkpoint cannot be read")
        raise error from PermissionError("denied")

    monkeypatch.setattr(saves, "read_checkpoint", fail)
    with pytest.raises(NCAPluginError, match="cannot be read"):
        survey(chain)


def longer(chain: Chain, tmp_path: Path) -> Chain:
    return chain_of(tmp_path, {**STAGES, "one": {"train_iters": 20}})


def other_preset(chain: Chain, tmp_path: Path) -> Chain:
    return chain_of(tmp_path, {**STAGES, "two": {"train_iters": 12, "transition": {"preset": "mlp-only"}}})


def other_selectors(chain: Chain, tmp_path: Path) -> Chain:
    transition = {"preset": "attention-only", "keep": ["mlp", "final_norm"]}
    return chain_of(tmp_path, {**STAGES, "two": {"train_iters": 12, "transition": transition}})


def trained_again(chain: Chain, tmp_path: Path) -> Chain:
    shutil.rmtree(chain.stages[0].folder)
    save_other(chain.stages[0].folder, 8, tmp_path)
    return chain


def trained_on(chain: Chain, tmp_path: Path) -> Chain:
    save(chain.stages[0].folder, 12)
    return chain


def no_report(chain: Chain, tmp_path: Path) -> Chain:
    assert chain.stages[1].start is not None
    (chain.stages[1].start / "transfer_report.json").unlink()
    return chain


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            longer,
            "stage one is at iteration 8 of 20 .*, but stage two, which comes after it, has begun: .*remove .*two",
        ),
        (other_preset, "was made with preset attention-only, and stages.two.transition has mlp-only: set it back; or"),
        (other_selectors, r"was made with keep \[\], and stages.two.transition has \[mlp, final_norm\]"),
        (trained_again, "was made from .*iter_0000008, not from what is in .*one/iter_0000008 now: remove it"),
        (trained_on, "was made from .*iter_0000008, not from what is in .*one/iter_0000012 now"),
        (no_report, "its transfer_report.json cannot be read .*: remove it"),
    ],
)
def test_what_contradicts_the_chain_is_not_used(
    chain: Chain, tmp_path: Path, change: Callable[[Chain, Path], Chain], reason: str
) -> None:
    save(chain.stages[0].folder, 8)
    make_start(chain, 1)
    survey(chain)
    with pytest.raises(NCAPluginError, match=reason) as error:
        survey(change(chain, tmp_path))
    assert "\n" not in str(error.value)


def test_a_start_checkpoint_belongs_to_its_stage_after_a_move(chain: Chain, tmp_path: Path) -> None:
    save(chain.stages[0].folder, 8)
    make_start(chain, 1)
    chain.folder.rename(tmp_path / "moved")
    assert described(chain_of(tmp_path, folder=str(tmp_path / "moved")))[1] == "ready to start"


@pytest.mark.parametrize(
    ("args", "is_complete"),
    [
        ({"consumed_train_samples": 96, "train_samples": 96, "train_iters": 12}, True),
        # Whole batches of 20 only.
        ({"consumed_train_samples": 80, "train_samples": 96, "train_iters": 4}, True),
        ({"consumed_train_samples": 48, "train_samples": 96, "train_iters": 12}, False),
        ({"consumed_train_samples": 48, "train_samples": 48, "train_iters": 4}, False),
        ({}, False),
    ],
)
def test_a_length_in_samples(tmp_path: Path, args: dict[str, int], is_complete: bool) -> None:
    (stage,) = chain_of(tmp_path, {"one": {"train_samples": 96}}).stages
    checkpoint: Any = SimpleNamespace(common_state={"args": SimpleNamespace(**args)})
    assert files._reaches(stage, checkpoint, 4) == is_complete


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ({}, "stages is empty"),
        ({"one": {}}, "stages.one: give its length: train_iters or train_samples"),
        ({"one": {"train_iters": 1, "train_samples": 1}}, "give its length"),
        ({"one": {"train_iters": 0}}, "a length of 0"),
        ({"one": {"train_iter": 1}}, "unknown key '?stages.one.train_iter'?: did you mean '?stages.one.train_iters"),
        ({"../one": {"train_iters": 1}}, "a stage's name becomes that of a folder"),
        ({"one": {"train_iters": 1, "transition": {"seed": 1}}}, "no meaning for the first stage"),
        (
            {**STAGES, "two": {"train_iters": 1, "transition": {"preset": "al"}}},
            "stages.two: transition: unknown preset",
        ),
        ({**STAGES, "two": {"train_iters": 1, "transition": {"keep": ["atention"]}}}, "stages.two: transition: "),
        ({**STAGES, "two": {"train_iters": 1, "transition": {"sed": 1}}}, "unknown key 'stages.two.transition.sed'"),
        ({"one": {"train_iters": 1, "arguments": {"save": "x"}}}, "arguments.save: leave it out, the chain sets it"),
        ({"one": {"train_iters": 1, "arguments": {"no-save-rng": True}}}, "could not continue as if"),
        ({"one": {"train_iters": 1, "arguments": {"train-iters": 5}}}, "give it beside the stage's arguments"),
        ({"one": {"train_iters": 1, "arguments": {"exit-interval": 5}}}, "ends a stage before it is complete"),
        ({"one": {"train_iters": 1, "overrides": ["a=1"]}}, "name it with config_name"),
        ({"one": {"train_iters": 1, "config_name": "missing"}}, "missing.yaml does not exist"),
        (
            {"one": {"train_iters": 1, "config_name": "pretrain", "arguments": {"lr": 1}}},
            "arguments beside config_name: write them into overrides",
        ),
        ({"one": {"train_iters": 1, "config_name": "pretrain", "overrides": ["modle=tiny"]}}, "did you mean 'model'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, stages: dict[str, Any], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        chain_of(tmp_path, stages)
    assert "\n" not in str(error.value) and "chain.yaml" in str(error.value)


def test_a_chain_without_saves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match="save-interval is missing"):
        chain_of(tmp_path, arguments={})


def test_a_hydra_file_as_a_stage(tmp_path: Path) -> None:
    stage = {"train_iters": 7, "config_name": "pretrain", "overrides": ["model=tiny", "data=dyck"]}
    one, two = chain_of(tmp_path, {"one": stage, "two": {**stage, "train_iters": None, "train_samples": 99}}).stages
    for parsed, expected in ((one, ["--train-iters", "7"]), (two, ["--train-samples", "99"])):
        assert parsed.module == "nca_plugin.launch.hydra"
        options = " ".join(parsed.options)
        assert " ".join(expected) in options and options.count("--train-") == 1
        assert f"--save {parsed.folder} --load {parsed.folder}" in options and "dyck://" in options
    assert f"arguments.pretrained-checkpoint='{two.start}'" in two.arguments


def test_the_options_of_a_transition_are_those_of_transfer() -> None:
    """The file's dataclass is another one, because OmegaConf cannot merge a file into a frozen one."""
    defaults = {field.name for field in dataclasses.fields(Transition)}
    assert defaults == {field.name for field in dataclasses.fields(TransitionConfig)}
    assert TransitionConfig().transition().described() == Transition().described()


def test_what_is_frozen_reaches_the_next_stage(tmp_path: Path) -> None:
    stages = {"one": {"train_iters": 1}, "two": {"train_iters": 1, "transition": {"freeze": ["attention"]}}}
    stage = chain_of(tmp_path, stages).stages[1]
    assert stage.options[stage.options.index("--freeze-list") + 1] == f"{stage.start}/freeze.txt"


def test_the_commands_of_a_chain_are_what_it_does(chain: Chain, tmp_path: Path) -> None:
    train, transition, *_ = commands(chain, 2)
    assert train.startswith("torchrun --standalone --nproc-per-node 2 -m nca_plugin.launch.megatron --save-interval 4")
    save(chain.stages[0].folder, 8)
    done = CliRunner().invoke(app, transition.split()[1:])
    assert done.exit_code == 0, done.output
    assert described(chain)[1] == "ready to start"


def test_the_table_and_the_exit_codes(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nca_plugin.chain.check.check_stages", lambda *_: None)

    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["chain", str(tmp_path / "chain.yaml"), *options])

    assert run("--is-complete").exit_code == 75
    assert "no job has begun this chain" in str(run("--stop").exception)
    save(chain.stages[0].folder, 4)
    shown = run().output
    assert re.search(r"one +at iteration 4 of 8 +8 +.*chain/one", shown)
    assert re.search(r"transition +waiting +.*one-to-two", shown)
    assert run("--stop").exit_code == 0 and chain.stop_file.exists()
    save(chain.stages[0].folder, 8)
    for number in (1, 2):
        make_start(chain, number)
        save(chain.stages[number].folder, 12)
    assert run("--is-complete").exit_code == 0
    assert "there is no job to stop" in str(run("--stop").exception)


def test_all_stages_are_checked_before_the_first(tmp_path: Path) -> None:
    chain = load_chain(SCRIPTS / "kill_chain.yaml", [f"folder={tmp_path}/chain", "stages.copy.arguments.lrr=1"])
    with pytest.raises(NCAPluginError, match=r"stages\.copy: unknown option '--lrr': did you mean '--lr'"):
        check_stages(chain, 2)


@pytest.mark.parametrize(
    ("transition", "rows"),
    [({}, 72), ({"vocab_size": 100}, 104), ({"tensor_model_parallel_size": 2}, 80), ({"vocab_size": 73}, 80)],
)
def test_the_rows_of_a_start_checkpoint_are_those_of_its_stage(
    tmp_path: Path, transition: dict[str, int], rows: int
) -> None:
    stage = chain_of(tmp_path, {"one": {"train_iters": 1}, "two": {"train_iters": 1, "transition": transition}}).stages[
        1
    ]
    sizes = {"vocab_size": 66, "make_vocab_size_divisible_by": 8, "tensor_model_parallel_size": 1, "rows": 72}
    _check_rows(stage, sizes, {**sizes, "rows": rows})
    with pytest.raises(NCAPluginError, match=f"leads to {rows} embedding rows, the stage has 1: set transition.vocab"):
        _check_rows(stage, sizes, {**sizes, "rows": 1})


def test_a_chain_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: Chain) -> None:
    checked = []
    monkeypatch.setattr("nca_plugin.chain.check.check_stages", lambda chain, ranks: checked.append(ranks))
    check_once(chain, 2)
    check_once(chain, 2)
    check_once(chain, 4)
    check_once(chain_of(tmp_path, arguments={"save-interval": 4, "lr": 1}), 4)
    assert checked == [2, 4, 4]
    (chain.folder / "chain.json").unlink()
    save(chain.stages[0].folder, 4)
    with pytest.raises(NCAPluginError, match="holds something else"):
        check_once(chain, 2)


@pytest.mark.parametrize("script", [*SCRIPTS.glob("chain/*.sh"), *SCRIPTS.glob("chain/*.sbatch")], ids=lambda p: p.name)
def test_the_scripts_are_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_the_manifest_is_a_pytorchjob() -> None:
    job = yaml.safe_load((SCRIPTS / "chain" / "pytorchjob.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert (job["kind"], worker["restartPolicy"]) == ("PyTorchJob", "OnFailure")
    (container,) = worker["template"]["spec"]["containers"]
    # The operator finds the container by its name, and the port by its name.
    assert container["name"] == "pytorch" and container["ports"][0]["name"] == "pytorchjob-port"
    assert (
        f"--rdzv-endpoint={job['metadata']['name']}-worker-0:{container['ports'][0]['containerPort']}"
        in (container["command"])
    )
    assert f"--nnodes={worker['replicas']}" in container["command"]


PARENT = """
import os, subprocess, sys, time
child = [sys.executable, "-c", '''
import os, sys, time
from nca_plugin.launch.process import die_with_torchrun
die_with_torchrun()
forked = os.fork()
if forked:
    print(os.getpid(), forked, flush=True)
time.sleep(60)
''']
subprocess.run(child, env={**os.environ, "TORCHELASTIC_RUN_ID": "test"})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_no_rank_outlives_its_launcher() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    ranks = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(ranks) == 2
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(ranks, timeout=5)[1]


@dataclasses.dataclass
class ChainJob:
    """A chain that scripts/chain/torchrun.sh trains, with two ranks unless told otherwise."""

    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    @property
    def path(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self, *options: str, command: tuple[str, ...] = ()) -> psutil.Popen:
        lengths = ("nca.train_iters=9", "dyck.train_samples=36", "copy.train_iters=40")
        overrides = (f"folder={self.folder}", "arguments.save-interval=4", *(f"stages.{length}" for length in lengths))
        overrides += self.overrides
        script = (str(SCRIPTS / "chain" / "torchrun.sh"), str(SCRIPTS / "kill_chain.yaml"))
        options = options or ("--standalone", "--nproc-per-node", "2")
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
        }
        with self.path.open("a") as log:
            return psutil.Popen(
                [*command, *script, *options, "--max-restarts", "1", "--", *overrides],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def events(self) -> list[str]:
        return re.findall(r"nca-plugin: chain: (.*)", self.log)

    def wait_for(self, pattern: str, process: psutil.Popen, timeout: float = 900) -> None:
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.log):
            assert process.poll() is None and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)

    @property
    def weights(self) -> dict[str, bytes]:
        checkpoint = read_checkpoint(self.folder / "copy")
        return {name: checkpoint.tensor(name).tobytes() for name in checkpoint.tensors}


def ranks_of(process: psutil.Popen) -> list[psutil.Process]:
    found = process.children(recursive=True)
    return [rank for rank in found if "nca_plugin.launch.megatron" in rank.cmdline()]


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    yield
    for process in psutil.Process().children(recursive=True):
        process.kill()


def test_a_killed_chain_continues(tmp_path: Path, no_process_is_left: None) -> None:
    """The only rank is killed, and torchrun starts it again."""
    job = ChainJob(tmp_path / "chain", ("~stages.copy", "stages.dyck.train_samples=160"))
    process = job.start("--standalone", "--nproc-per-node", "1")
    job.wait_for(r"saved checkpoint from iteration +8 .*/dyck", process)
    ranks_of(process)[0].send_signal(signal.SIGKILL)
    assert process.wait(900) == 0, job.log[-3000:]
    began = [event for event in job.events() if event.startswith("stage ")]
    assert [event.split()[1:3] for event in began[:2]] == [["nca", "begins"], ["dyck", "begins"]]
    (again,) = began[2:]
    assert re.fullmatch(r"stage dyck continues at iteration \d+", again)
    assert job.events()[-1].startswith("complete")


@pytest.mark.slow
def test_a_killed_chain_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, no_process_is_left: None) -> None:
    """A rank is killed, and torchrun starts all of them again."""
    job = ChainJob(tmp_path / "chain")
    process = job.start()
    job.wait_for(r"saved checkpoint from iteration +8 .*/copy", process)
    ranks_of(process)[0].send_signal(signal.SIGKILL)
    assert process.wait(900) == 0, job.log[-3000:]
    began = [event for event in job.events() if event.startswith("stage ")]
    assert [event.split()[1:3] for event in began[:3]] == [[name, "begins"] for name in ("nca", "dyck", "copy")]
    (again,) = began[3:]
    assert re.fullmatch(r"stage copy continues at iteration \d+ of 40", again)
    assert job.events()[-1].startswith("complete")
    killed = job.weights
    # Once more, undisturbed, from the same start checkpoint.
    shutil.rmtree(job.folder / "copy")
    assert job.start().wait(900) == 0
    assert job.weights == killed


@pytest.mark.slow
def test_a_chain_that_is_stopped_in_order_continues_where_it_was(tmp_path: Path, no_process_is_left: None) -> None:
    job = ChainJob(tmp_path / "chain")
    process = job.start()
    # Asked before Megatron can listen, it ends after its first iteration.
    job.wait_for("stage dyck begins", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(900) == 75, job.log[-3000:]
    assert job.events()[-1] == "stopped on request, stage dyck at iteration 1: start it again to continue"
    assert not (job.folder / "stop").exists()
    process = job.start()
    assert process.wait(900) == 0, job.log[-3000:]
    assert "stage dyck continues at iteration 1" in job.events() and job.events()[-1].startswith("complete")


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    """With dropout, evaluation and two ranks, in float32, where the distributed optimizer holds parts of weights."""
    arguments = (
        *("--data-source", "nca://toy", "--train-iters", "8", "--save-interval", "4", "--attention-dropout", "0.1"),
        *("--hidden-dropout", "0.1", "--eval-interval", "3", "--eval-iters", "1"),
    )
    jobs = []
    for name, optimizer in (("plain", ()), ("distributed", ("--use-distributed-optimizer",))):
        whole, resumed = str(tmp_path / name), str(tmp_path / f"{name}-resumed")
        jobs.append(Job(name, (*arguments, *optimizer, "--save", whole), ranks=2))
        half = ("--load", whole, "--ckpt-step", "4", "--save", resumed)
        jobs.append(Job(f"{name}-resumed", (*arguments, *optimizer, *half), ranks=2))
    train(tmp_path / "jobs", jobs)
    for name in ("plain", "distributed"):
        expected, found = (read_checkpoint(tmp_path / folder) for folder in (name, f"{name}-resumed"))
        for tensor in expected.tensors:
            # What pads the distributed optimizer's buffers is never set.
            if not tensor.startswith("optimizer.distributed."):
                assert found.tensor(tensor).tobytes() == expected.tensor(tensor).tobytes(), (name, tensor)


def _in_namespace(number: int) -> tuple[str, ...]:
    return ("ip", "netns", "exec", f"nca-chain-{number}", "env", f"GLOO_SOCKET_IFNAME=eth{number}")


@pytest.fixture
def two_machines() -> Iterator[Callable[..., None]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, with a cable between them; returns `ip` within one of them."""

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no network namespaces here: {done.stderr.strip() or done.returncode}")

    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("network namespaces need root and iproute2")
    try:
        for number in (1, 2):
            ip("netns", "add", f"nca-chain-{number}")
        ip(
            "link",
            "add",
            "eth1",
            "netns",
            "nca-chain-1",
            "type",
            "veth",
            "peer",
            "name",
            "eth2",
            "netns",
            "nca-chain-2",
        )
        for number in (1, 2):
            within = ("-n", f"nca-chain-{number}")
            ip(*within, "address", "add", f"10.77.0.{number}/24", "dev", f"eth{number}")
            for device in ("lo", f"eth{number}"):
                ip(*within, "link", "set", device, "up")
        yield ip
    finally:
        for number in (1, 2):
            subprocess.run(["ip", "netns", "delete", f"nca-chain-{number}"], capture_output=True)


@pytest.mark.slow
def test_two_machines_of_which_one_is_cut_off(
    tmp_path: Path, two_machines: Callable[..., None], no_process_is_left: None
) -> None:
    """Both find out; killed, connected and started again, the one that was cut off takes its place."""
    job, port = ChainJob(tmp_path / "chain"), "29577"

    def machine(number: int) -> psutil.Popen:
        options = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", f"10.77.0.1:{port}")
        # The name of the host, which both have, tells neither who of them the address belongs to.
        options += ("--rdzv-conf", f"is_host={int(number == 1)}", "--local-addr", f"10.77.0.{number}")
        return job.start(*options, command=_in_namespace(number))

    first, second = machine(1), machine(2)
    job.wait_for(r"saved checkpoint from iteration +4 .*/dyck", first)
    two_machines("-n", "nca-chain-2", "link", "set", "eth2", "down")
    # Each side finds out by itself; torchrun would go on looking for the others for ten minutes.
    for lost in ("machine 1 of the job has not been heard of", "rank 1 has not reached rank 0"):
        job.wait_for(lost, first)
    doomed = second.children(recursive=True)
    doomed[0].kill()
    assert not psutil.wait_procs(doomed, timeout=60)[1]
    assert second.wait(60) == 128 + signal.SIGKILL
    two_machines("-n", "nca-chain-2", "link", "set", "eth2", "up")
    second = machine(2)
    assert (first.wait(900), second.wait(300)) == (0, 0), job.log[-3000:]
    assert any(event.startswith("stage dyck continues at iteration 4") for event in job.events())
