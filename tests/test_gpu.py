"""The same data and losses on CUDA devices as in CPU mode, and the same run when resumed: `make test-gpu`."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import with_devices
from megatron_runs import FinishedRun, run

from nca_plugin.megatron.cpu import CPU_ARGUMENTS

pytestmark = pytest.mark.gpu

NCA = ("--data-source", "nca://toy", "--tokenizer-type", "NullTokenizer", "--vocab-size", "512", "--train-iters", "20")
# Plain PyTorch layers, as in CPU mode; the first of its arguments is the backend.
LOCAL = tuple(argument for argument in CPU_ARGUMENTS if "gloo" not in argument and "initialization" not in argument)
TRANSFORMER_ENGINE = () if find_spec("amp_C") else ("--no-gradient-accumulation-fusion", "--no-persist-layer-norm")
IMPLEMENTATIONS = [
    pytest.param(LOCAL, id="local"),
    pytest.param(
        TRANSFORMER_ENGINE,
        id="Transformer Engine",
        marks=pytest.mark.skipif(not find_spec("transformer_engine"), reason="Transformer Engine is not installed"),
    ),
]


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
def first_weights(num_devices: int, folder: Path) -> tuple[str, str]:
    """The argument that lets every run start from the same weights."""
    checkpoint = folder / "first-weights"
    run(folder / "first", *NCA, "--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save", checkpoint)
    return ("--pretrained-checkpoint", str(checkpoint))


@pytest.fixture(scope="module")
def cpu_mode(folder: Path, first_weights: tuple[str, str]) -> FinishedRun:
    return run(folder / "cpu", *NCA, *first_weights)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_cuda_computes_what_cpu_mode_does(
    folder: Path, first_weights: tuple[str, str], cpu_mode: FinishedRun, implementation: tuple[str, ...]
) -> None:
    cuda = run(folder / f"cuda-{len(implementation)}", *NCA, *first_weights, *implementation, cuda=True)
    assert "CPU mode" not in cuda.log
    assert cuda.batches == cpu_mode.batches
    losses, expected = list(cuda.losses.values()), list(cpu_mode.losses.values())
    np.testing.assert_allclose(losses[:5], expected[:5], rtol=1e-4)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16(
    folder: Path, first_weights: tuple[str, str], cpu_mode: FinishedRun, implementation: tuple[str, ...]
) -> None:
    cuda = run(folder / f"bf16-{len(implementation)}", *NCA, *first_weights, *implementation, "--bf16", cuda=True)
    assert cuda.batches == cpu_mode.batches
    np.testing.assert_allclose(list(cuda.losses.values()), list(cpu_mode.losses.values()), rtol=2e-2)


@pytest.mark.parametrize("parallelism", ["data", "tensor"])
def test_all_devices(
    num_devices: int, folder: Path, first_weights: tuple[str, str], cpu_mode: FinishedRun, parallelism: str
) -> None:
    ranks = 1 << min(2, num_devices.bit_length() - 1)
    if ranks == 1:
        pytest.skip("this machine has one CUDA device")
    arguments = ("--tensor-model-parallel-size", str(ranks)) if parallelism == "tensor" else ()
    cuda = run(folder / parallelism, *NCA, *first_weights, *LOCAL, *arguments, ranks=ranks, cuda=True)
    np.testing.assert_allclose(list(cuda.losses.values()), list(cpu_mode.losses.values()), rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one(
    folder: Path, first_weights: tuple[str, str], cpu_mode: FinishedRun, precision: str
) -> None:
    arguments = (*NCA, *first_weights, *LOCAL, *(("--bf16",) if precision == "bf16" else ()))
    checkpoint = folder / f"{precision}-checkpoint"
    kept = (*arguments, "--save", checkpoint, "--load", checkpoint, "--save-interval", "10")
    whole = run(folder / f"{precision}-whole", *arguments, cuda=True)
    until_10 = run(folder / f"{precision}-until-10", *kept, "--exit-interval", "10", cuda=True)
    from_10 = run(folder / f"{precision}-from-10", *kept, cuda=True)
    assert until_10.batches + from_10.batches == whole.batches == cpu_mode.batches
    resumed = {**until_10.losses, **from_10.losses}
    assert resumed == pytest.approx(whole.losses, rel=1e-5 if precision == "float32" else 1e-2)
