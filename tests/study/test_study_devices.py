"""Which devices the runs of a study get, and how many runs are done at a time."""

import dataclasses
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import STUDY, config_of, plan_of

from nca_plugin.errors import NCAPluginError
from nca_plugin.study import estimate
from nca_plugin.study import runner as launchers
from nca_plugin.study.compute import Compute
from nca_plugin.study.design import StudyConfig
from nca_plugin.study.devices import device_groups, device_names, fewer_runs_note
from nca_plugin.study.execute import Result
from nca_plugin.study.file import load_study
from nca_plugin.study.rank_processes import Place
from nca_plugin.study.run import Run
from nca_plugin.study.sweep import Chosen

CONFIG = config_of()


def study_of(parallel_runs: int, devices_per_run: int, runs_per_device: int) -> StudyConfig:
    return dataclasses.replace(
        CONFIG, parallel_runs=parallel_runs, devices_per_run=devices_per_run, runs_per_device=runs_per_device
    )


@pytest.mark.parametrize(
    ("devices", "parallel_runs", "devices_per_run", "runs_per_device", "groups"),
    [
        # On the CPU devices limit nothing.
        ("", 3, 1, 1, [None, None, None]),
        ("", 2, 8, 1, [None, None]),
        ("", 2, 1, 4, [None, None]),
        ("0", 1, 1, 1, ["0"]),
        ("0", 2, 1, 1, ["0"]),
        ("0", 2, 1, 2, ["0", "0"]),
        ("0", 4, 1, 3, ["0", "0", "0"]),
        ("01", 2, 1, 4, ["0", "1"]),
        ("01", 3, 1, 2, ["0", "1", "0"]),
        ("0123", 2, 2, 1, ["01", "23"]),
        ("0123", 4, 2, 1, ["01", "23"]),
        ("01234", 4, 2, 1, ["01", "23"]),
        ("0123", 1, 4, 1, ["0123"]),
        ("57", 8, 1, 1, ["5", "7"]),
    ],
)
def test_devices_of_runs(
    devices: str, parallel_runs: int, devices_per_run: int, runs_per_device: int, groups: list[str | None]
) -> None:
    found = device_groups(list(devices), study_of(parallel_runs, devices_per_run, runs_per_device))
    assert found == [None if names is None else list(names) for names in groups]


@given(
    st.integers(1, 16),
    st.integers(1, 32),
    st.one_of(st.tuples(st.integers(1, 16), st.just(1)), st.tuples(st.just(1), st.integers(1, 8))),
)
def test_as_many_runs_as_devices_allow(count: int, parallel_runs: int, sizes: tuple[int, int]) -> None:
    devices_per_run, runs_per_device = sizes
    study = study_of(parallel_runs, devices_per_run, runs_per_device)
    devices = [f"GPU-{i}" for i in range(count)]
    if devices_per_run > count:
        with pytest.raises(NCAPluginError):
            device_groups(devices, study)
        return
    groups = [list(names) for names in device_groups(devices, study) if names is not None]
    assert 1 <= len(groups) <= parallel_runs
    assert all(len(set(names)) == len(names) == devices_per_run for names in groups)
    runs = Counter(name for names in groups for name in names)
    assert set(runs) <= set(devices) and max(runs.values()) <= runs_per_device
    if len(groups) < parallel_runs:
        assert sum(runs_per_device - runs[name] for name in devices) < devices_per_run
    if devices_per_run == 1:
        assert max(runs.values()) - min(runs[name] for name in devices) <= 1


def test_a_run_that_needs_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(NCAPluginError) as error:
        device_groups(["0"], study_of(1, 8, 1))
    assert str(error.value) == "devices_per_run 8: this machine has 1 CUDA device: lower devices_per_run"


@pytest.mark.parametrize(
    ("num_devices", "at_a_time", "study", "note"),
    [
        (
            *(1, 1, (2, 1, 1)),
            "1 run at a time, not 2 (parallel_runs): this machine has 1 CUDA device; runs that are small enough can "
            "share devices with runs_per_device=2",
        ),
        (
            *(2, 4, (5, 1, 2)),
            "4 runs at a time, not 5 (parallel_runs): this machine has 2 CUDA devices; runs that are small enough can "
            "share devices with runs_per_device=3",
        ),
        (
            *(5, 2, (4, 2, 1)),
            "2 runs at a time, not 4 (parallel_runs): this machine has 5 CUDA devices, and a run takes 2 "
            "(devices_per_run)",
        ),
    ],
)
def test_why_there_are_fewer_runs_at_a_time(
    num_devices: int, at_a_time: int, study: tuple[int, int, int], note: str
) -> None:
    config = study_of(*study)
    assert len(device_groups([str(i) for i in range(num_devices)], config)) == at_a_time
    assert fewer_runs_note(num_devices, at_a_time, config) == note


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (2, None, ["0", "1"]),
        (0, "", []),
        (2, "3,1", ["3", "1"]),
        # CUDA stops at a name that it does not know.
        (1, "2,-1,3", ["2"]),
        (1, "GPU-8932f937", ["GPU-8932f937"]),
    ],
)
def test_names_are_those_of_the_user(count: int, visible: str | None, names: list[str]) -> None:
    assert device_names(count, visible) == names


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["runs_per_device=0"], "runs_per_device must be at least 1"),
        (["runs_per_device=2", "devices_per_run=2"], "runs_per_device 2: must be 1 if devices_per_run is 2"),
    ],
)
def test_a_study_that_shares_devices_wrongly_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        load_study(STUDY, overrides)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_runs_that_share_a_device_are_the_same_runs() -> None:
    alone, shared = (plan_of(f"runs_per_device={number}").stage1("dyck", 1, Chosen()) for number in (1, 4))
    assert (alone.identity, alone.folder) == (shared.identity, shared.folder)


class Notes:
    """What a study says that is no task's."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def expect(self, total: int) -> None: ...
    def start(self, name: str, total: int) -> None: ...
    def update(self, name: str, done: int) -> None: ...
    def finish(self, name: str, message: str) -> None: ...

    def note(self, message: str) -> None:
        self.lines.append(message)


class Executions:
    """Stands in for `execute`: it wants so many runs at a time, no fewer and no more."""

    def __init__(self, at_a_time: int) -> None:
        self._all_started = threading.Barrier(at_a_time)
        self._free = threading.Semaphore(at_a_time)
        self.places: list[Place] = []

    def __call__(self, run: Run, place: Place) -> Result:
        assert self._free.acquire(blocking=False)
        self.places.append(place)
        self._all_started.wait(30)
        result: dict[str, Any] = {"validation": [], "evaluation": None, "seconds": 0.0}
        run.folder.mkdir(parents=True)
        (run.folder / "result.json").write_text(json.dumps({"identity": run.identity, **result}))
        self._free.release()
        return Result([], None, 0.0)


@pytest.mark.parametrize(("runs_per_device", "at_a_time", "num_notes"), [(1, 1, 1), (2, 2, 1), (4, 4, 0)])
def test_a_study_on_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_per_device: int, at_a_time: int, num_notes: int
) -> None:
    overrides = [f"output={tmp_path}", "parallel_runs=4", f"runs_per_device={runs_per_device}"]
    executions, notes = Executions(at_a_time), Notes()
    monkeypatch.setattr(launchers, "cuda_devices", lambda: ["5"])
    monkeypatch.setattr(launchers, "num_cores", lambda: 8)
    monkeypatch.setattr(launchers, "execute", executions)
    runner, plan = launchers.Runner(load_study(STUDY, overrides), notes), plan_of(*overrides)
    for arm in ("nca-high", "nca-low"):
        runner.run_all([plan.stage1(arm, seed, Chosen()) for seed in (1, 2, 3, 4)])
    # What is complete is not done again.
    runner.run_all([plan.stage1("nca-high", 1, Chosen())])
    assert [(place.ranks, place.threads, place.devices) for place in executions.places] == [
        (1, 8 // at_a_time, ["5"])
    ] * 8
    assert len(notes.lines) == num_notes


def test_complete_runs_need_no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"output={tmp_path}", "devices_per_run=8", "language.validation_tokens=16384"]
    run = plan_of(*overrides).stage1("dyck", 1, Chosen())
    Executions(1)(run, Place())
    monkeypatch.setattr(launchers, "cuda_devices", lambda: ["0"])
    runner = launchers.Runner(load_study(STUDY, overrides), Notes())
    runner.run_all([run])
    with pytest.raises(NCAPluginError, match="devices_per_run 8: this machine has 1 CUDA device"):
        runner.run_all([plan_of(*overrides).stage1("dyck", 2, Chosen())])


@pytest.mark.parametrize(
    ("overrides", "at_a_time"),
    [
        (["parallel_runs=2"], 2),
        (["parallel_runs=6", "runs_per_device=6"], 6),
        # Language runs are the most: six arms and the longer baseline, of each of three seeds.
        (["parallel_runs=2", "hydra/launcher=submitit_slurm"], 21),
    ],
)
def test_the_disk_that_runs_at_a_time_take(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], at_a_time: int
) -> None:
    study = load_study(STUDY, overrides)
    arms = {arm: 1.0 for arm in study.config.arms if arm != "scratch"}
    compute = Compute(arms, {"python": 1.0}, 1_000)
    monkeypatch.setattr(estimate, "checked", lambda study, is_run: compute)
    found = estimate.needs(study)
    assert found.final_bytes is not None and found.peak_bytes is not None
    # Five more checkpoints of each run, of 16 bytes for each parameter.
    assert found.peak_bytes - found.final_bytes == at_a_time * 5 * 16_000
