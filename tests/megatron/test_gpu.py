"""The same data and losses on CUDA devices as in CPU mode, and the same run when resumed: `make test-gpu`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import with_devices
from megatron_runs import FinishedRun, run

pytestmark = pytest.mark.gpu

NCA = ("--data-source", "nca://toy", "--tokenizer-type", "NullTokenizer", "--vocab-size", "512", "--train-iters", "20")
# Plain PyTorch layers, as in CPU mode.
LOCAL = ("--transformer-impl", "local", "--local-kernels")
PRECISIONS = {"float32": (), "bf16": ("--bf16",)}
INSTALLED = {"local": LOCAL}
if find_spec("transformer_engine"):
    # Apex need not be there.
    INSTALLED["Transformer Engine"] = ("--local-kernels",)


@dataclass(frozen=True)
class Runs:
    """Runs from the same weights, all started at once: most of the time that one takes is its start."""

    first_weights: tuple[str, str]
    cpu_mode: Future[FinishedRun]
    cuda: Mapping[tuple[str, str], Future[FinishedRun]]
    """By implementation and precision; only what is installed."""

    halves: Mapping[str, Future[tuple[FinishedRun, FinishedRun]]]
    """Runs of plain PyTorch layers until update 10, and resumed from there, by precision."""

    def on_cuda(self, implementation: str, precision: str) -> FinishedRun:
        if implementation not in INSTALLED:
            pytest.skip(f"{implementation} is not installed")
        return self.cuda[implementation, precision].result()


@pytest.fixture(scope="module")
def num_devices() -> int:
    """CUDA devices of this machine."""
    count = subprocess.run(
        (sys.executable, "-c", "import torch; print(torch.cuda.device_count())"),
        env=with_devices(),
        capture_output=True,
        text=True,
        check=True,
    )
    if count.stdout.strip() == "0":
        pytest.skip("this machine has no CUDA device")
    return int(count.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def runs(num_devices: int, folder: Path) -> Iterator[Runs]:
    checkpoint = folder / "first-weights"
    run(folder / "first", *NCA, "--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save", checkpoint)
    first_weights = ("--pretrained-checkpoint", str(checkpoint))

    def halves(precision: str) -> tuple[FinishedRun, FinishedRun]:
        kept = folder / f"{precision}-checkpoint"
        arguments = (*NCA, *first_weights, *LOCAL, *PRECISIONS[precision], "--save", kept, "--load", kept)
        until_10 = run(folder / f"{precision}-until-10", *arguments, "--exit-interval", "10", cuda=True)
        return until_10, run(folder / f"{precision}-from-10", *arguments, cuda=True)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        yield Runs(
            first_weights,
            halves={precision: pool.submit(halves, precision) for precision in PRECISIONS},
            cpu_mode=pool.submit(run, folder / "cpu", *NCA, *first_weights),
            cuda={
                (layers, precision): pool.submit(
                    run, folder / f"{layers[0]}-{precision}", *NCA, *first_weights, *arguments, *bf16, cuda=True
                )
                for layers, arguments in INSTALLED.items()
                for precision, bf16 in PRECISIONS.items()
            },
        )


@pytest.mark.parametrize("implementation", ["local", "Transformer Engine"])
def test_cuda_computes_what_cpu_mode_does(runs: Runs, implementation: str) -> None:
    cuda, cpu_mode = runs.on_cuda(implementation, "float32"), runs.cpu_mode.result()
    assert "CPU mode" not in cuda.log
    assert cuda.batches == cpu_mode.batches
    losses, expected = list(cuda.losses.values()), list(cpu_mode.losses.values())
    np.testing.assert_allclose(losses[:5], expected[:5], rtol=1e-4)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["local", "Transformer Engine"])
def test_bfloat16(runs: Runs, implementation: str) -> None:
    cuda, cpu_mode = runs.on_cuda(implementation, "bf16"), runs.cpu_mode.result()
    assert cuda.batches == cpu_mode.batches
    np.testing.assert_allclose(list(cuda.losses.values()), list(cpu_mode.losses.values()), rtol=2e-2)


@pytest.mark.parametrize("parallelism", ["data", "tensor"])
def test_all_devices(num_devices: int, folder: Path, runs: Runs, parallelism: str) -> None:
    ranks = 1 << min(2, num_devices.bit_length() - 1)
    if ranks == 1:
        pytest.skip("this machine has one CUDA device")
    arguments = ("--tensor-model-parallel-size", str(ranks)) if parallelism == "tensor" else ()
    cuda = run(folder / parallelism, *NCA, *runs.first_weights, *LOCAL, *arguments, ranks=ranks, cuda=True)
    expected = runs.cpu_mode.result().losses.values()
    np.testing.assert_allclose(list(cuda.losses.values()), list(expected), rtol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_is_the_uninterrupted_one(runs: Runs, precision: str) -> None:
    whole, cpu_mode = runs.on_cuda("local", precision), runs.cpu_mode.result()
    until_10, from_10 = runs.halves[precision].result()
    assert until_10.batches + from_10.batches == whole.batches == cpu_mode.batches
    resumed = {**until_10.losses, **from_10.losses}
    assert resumed == pytest.approx(whole.losses, rel=1e-5 if precision == "float32" else 1e-2)
