"""Runs on CUDA without Transformer Engine and Apex, with a GPU that is none: `fake_cuda` tells how.

This module is also the script that does the jobs of Megatron.
"""

import os
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import forked_ranks
import pytest
from megatron_runs import read_losses

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron import connections
from nca_plugin.megatron import fused_kernels as kernels
from nca_plugin.megatron.fused_kernels import (
    Kernels,
    added_arguments,
    check_kernels,
    described_needs,
    needed_arguments,
)

ALL = Kernels()
NO_TRANSFORMER_ENGINE = Kernels(has_transformer_engine=False)
NO_APEX = Kernels(has_apex=False, has_gradient_extension=False, has_softmax_extension=False)
NEITHER = Kernels(False, False, False, False)
#: What Megatron makes of a command line that names none of these.
DEFAULTS: dict[str, Any] = {
    **{"transformer_impl": "transformer_engine", "no_persist_layer_norm": False, "gradient_accumulation_fusion": True},
    **{"apply_rope_fusion": True, "masked_softmax_fusion": True, "normalization": "LayerNorm"},
    **{"position_embedding_type": "learned_absolute", "use_rotary_position_embeddings": False},
    **{"bf16": False, "fp16": False, "use_checkpoint_args": False, "local_kernels": False},
}
ROPE: dict[str, Any] = {"position_embedding_type": "rope"}
LOCAL: dict[str, Any] = {"transformer_impl": "local"}
OF_NEITHER = "--transformer-impl local --no-persist-layer-norm --no-gradient-accumulation-fusion"
COMPLETE: dict[str, Any] = {
    **{"transformer_impl": "local", "no_persist_layer_norm": True, "gradient_accumulation_fusion": False},
    **{"apply_rope_fusion": False, "masked_softmax_fusion": False, "bf16": True, **ROPE},
}


@pytest.mark.parametrize(
    ("kernels", "arguments", "needed"),
    [
        (ALL, {**ROPE, "bf16": True}, ""),
        (ALL, {**ROPE, **LOCAL, "bf16": True}, ""),
        # Apex has no RMSNorm.
        (ALL, {**LOCAL, "normalization": "RMSNorm"}, "--no-persist-layer-norm"),
        (NEITHER, {}, OF_NEITHER),
        (NEITHER, ROPE, f"{OF_NEITHER} --no-rope-fusion"),
        (NEITHER, {"use_rotary_position_embeddings": True}, f"{OF_NEITHER} --no-rope-fusion"),
        # It may be the checkpoint that has rope.
        (NEITHER, {"use_checkpoint_args": True}, f"{OF_NEITHER} --no-rope-fusion"),
        (NEITHER, {"position_embedding_type": "yarn"}, OF_NEITHER),
        (NEITHER, {"bf16": True}, f"{OF_NEITHER} --no-masked-softmax-fusion"),
        (NEITHER, {"fp16": True, **ROPE}, f"{OF_NEITHER} --no-rope-fusion --no-masked-softmax-fusion"),
        (NEITHER, COMPLETE, ""),
        (NEITHER, {**COMPLETE, "no_persist_layer_norm": False}, "--no-persist-layer-norm"),
        (NO_TRANSFORMER_ENGINE, {**ROPE, "bf16": True}, "--transformer-impl local --no-rope-fusion"),
        (NO_APEX, {**ROPE, "bf16": True}, "--no-gradient-accumulation-fusion"),
        (
            NO_APEX,
            {**LOCAL, **ROPE, "bf16": True},
            "--no-persist-layer-norm --no-gradient-accumulation-fusion --no-masked-softmax-fusion",
        ),
        (Kernels(has_softmax_extension=False), {"bf16": True}, ""),
        (Kernels(has_gradient_extension=False), {}, "--no-gradient-accumulation-fusion"),
    ],
)
def test_arguments_that_a_run_needs(kernels: Kernels, arguments: dict[str, Any], needed: str) -> None:
    args = Namespace(**{**DEFAULTS, **arguments})
    assert " ".join(needed_arguments(args, kernels)) == needed
    args.local_kernels = True
    assert " ".join(added_arguments(args, kernels)) == needed


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (
            NEITHER,
            f"without Transformer Engine and NVIDIA's Apex, a run on CUDA needs {OF_NEITHER}: add --local-kernels "
            "(with Hydra +kernels=local), which adds them all",
        ),
        (
            NO_APEX,
            "without NVIDIA's Apex, a run on CUDA needs --no-gradient-accumulation-fusion: add --local-kernels (with "
            "Hydra +kernels=local), which adds it",
        ),
        (
            Kernels(has_gradient_extension=False),
            "without some CUDA extensions of Apex, a run on CUDA needs --no-gradient-accumulation-fusion: add "
            "--local-kernels (with Hydra +kernels=local), which adds it",
        ),
    ],
)
def test_the_message_names_all_of_them(kernels: Kernels, message: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        added_arguments(Namespace(**DEFAULTS), kernels)
    assert str(error.value) == message


def test_what_doctor_says_is_what_runs_need() -> None:
    runs: list[dict[str, Any]] = [{}, ROPE, {"bf16": True}]
    needed = {a for run in runs for a in needed_arguments(Namespace(**{**DEFAULTS, **run}), NEITHER)}
    said = described_needs(NEITHER)
    assert said == f"{OF_NEITHER}, with rope --no-rope-fusion, in bf16 or fp16 --no-masked-softmax-fusion"
    assert needed == set(re.findall(r"--transformer-impl local|--no-[\w-]+", said))


def test_the_defaults_are_megatrons() -> None:
    from megatron.training.arguments import add_megatron_arguments

    parsed = vars(add_megatron_arguments(ArgumentParser()).parse_args([]))
    assert {name: parsed[name] for name in kernels._DEFAULTS} == kernels._DEFAULTS


#: Nothing that only Transformer Engine has.
PLAIN: dict[str, Any] = {
    **{"fp8": None, "fp4": None, "context_parallel_size": 1, "multi_latent_attention": False},
    **{"use_precision_aware_optimizer": False, "attention_backend": SimpleNamespace(name="auto")},
    **{"hybrid_layer_pattern": None, "spec": None, "normalization": "LayerNorm"},
}


@pytest.mark.parametrize(
    ("there", "arguments", "refused"),
    [
        (NEITHER, {}, None),
        (NEITHER, {"fp8": "hybrid"}, "--fp8-format"),
        (NEITHER, {"fp8": "e4m3", "fp4": "e2m1"}, "--fp8-format, --fp4-format"),
        (NEITHER, {"context_parallel_size": 2}, "--context-parallel-size 2"),
        (NEITHER, {"multi_latent_attention": True}, "--multi-latent-attention"),
        (NEITHER, {"use_precision_aware_optimizer": True}, "--use-precision-aware-optimizer"),
        (NEITHER, {"attention_backend": SimpleNamespace(name="flash")}, "--attention-backend flash"),
        (NEITHER, {"attention_backend": SimpleNamespace(name="local")}, None),
        (NEITHER, {"hybrid_layer_pattern": "M*"}, "--hybrid-layer-pattern without a --spec of your own"),
        (NEITHER, {"hybrid_layer_pattern": "M*", "spec": ["mine", "SPEC"]}, None),
        (NEITHER, {"normalization": "RMSNorm"}, None),
        (NO_TRANSFORMER_ENGINE, {"normalization": "RMSNorm"}, "--normalization RMSNorm beside Apex"),
        (NO_APEX, {"fp8": "hybrid", "context_parallel_size": 2}, None),
    ],
)
def test_what_only_transformer_engine_has_is_refused(
    there: Kernels, arguments: dict[str, Any], refused: str | None
) -> None:
    args = Namespace(**{**PLAIN, **arguments})
    if refused is None:
        check_kernels(args, there)
        return
    with pytest.raises(NCAPluginError, match="without Transformer Engine") as error:
        check_kernels(args, there)
    assert f"cannot have {refused}: change the run" in str(error.value)


SERIAL: dict[str, Any] = {
    **{"tensor_model_parallel_size": 1, "context_parallel_size": 1, "use_torch_fsdp2": False},
    **{"use_megatron_fsdp": False, "overlap_moe_expert_parallel_comm": False},
    **{"use_mp_args_from_checkpoint_args": False},
}
TENSOR = {"tensor_model_parallel_size": 2}


@pytest.mark.parametrize(
    ("arguments", "architecture", "given", "after"),
    [
        ({}, 9, None, None),
        (TENSOR, 9, None, "1"),
        ({"context_parallel_size": 2}, 8, None, "1"),
        (TENSOR, 10, None, None),
        ({"use_mp_args_from_checkpoint_args": True}, 9, None, "1"),
        ({"use_mp_args_from_checkpoint_args": True}, 9, "8", "8"),
        ({"use_mp_args_from_checkpoint_args": True}, 10, None, None),
        (TENSOR, 9, "1", "1"),
        (TENSOR, 10, "32", "32"),
        ({}, 9, "8", "8"),
        ({**TENSOR, "use_megatron_fsdp": True}, 9, None, None),
        ({**TENSOR, "use_torch_fsdp2": True}, 9, "8", "8"),
    ],
)
def test_connections_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    architecture: int,
    given: str | None,
    after: str | None,
) -> None:
    with_connections(monkeypatch, given, architecture)
    said = connections.limit_connections(Namespace(**{**SERIAL, **arguments}))
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == after
    assert said == (f"CUDA_DEVICE_MAX_CONNECTIONS={after}" if given != after else None)


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_connections_that_megatron_refuses(monkeypatch: pytest.MonkeyPatch, from_checkpoint: bool) -> None:
    with_connections(monkeypatch, "8", 9)
    with pytest.raises(NCAPluginError, match=r"^CUDA_DEVICE_MAX_CONNECTIONS=8: Megatron insists on 1 .*: unset it"):
        connections.limit_connections(
            Namespace(**{**SERIAL, **TENSOR, "use_mp_args_from_checkpoint_args": from_checkpoint})
        )
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"


def with_connections(monkeypatch: pytest.MonkeyPatch, given: str | None, architecture: int) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=architecture))
    # Undone, whatever the test sets.
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", given or "")
    if given is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")


# Runs.

#: With dropout, so that a run resumes only if its random numbers do.
MODEL: dict[str, Any] = {
    **{"num-layers": 2, "hidden-size": 32, "num-attention-heads": 4, "normalization": "RMSNorm", "swiglu": True},
    **{"seq-length": 96, "max-position-embeddings": 96, "position-embedding-type": "rope", "bf16": True},
    **{"untie-embeddings-and-output-weights": True, "attention-dropout": 0, "micro-batch-size": 2},
    **{"global-batch-size": 4, "num-workers": 0, "lr": 1e-3, "lr-decay-style": "constant", "train-iters": 4},
    **{"eval-interval": 1000, "eval-iters": 0, "save-interval": 2, "log-interval": 1, "tensorboard-log-interval": 1},
}
TENSOR_PARALLEL: dict[str, Any] = {"tensor-model-parallel-size": 2, "sequence-parallel": True}
DISTRIBUTED = "--use-distributed-optimizer"
LAYOUTS = {
    "one-rank": (1, ()),
    "one-rank-distributed": (1, (DISTRIBUTED,)),
    "two-ranks-distributed": (2, (DISTRIBUTED,)),
    "tensor": (2, ("--tensor-model-parallel-size", "2")),
    "tensor-distributed": (2, ("--tensor-model-parallel-size", "2", "--sequence-parallel", DISTRIBUTED)),
}
#: In the order in which they are done.
PARTS = {"whole": (), "until-2": ("--exit-interval", "2"), "from-2": ()}


def options(arguments: dict[str, Any]) -> list[str]:
    return [
        part
        for name, value in arguments.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def job(layout: str, part: str, folder: Path) -> forked_ranks.Job:
    ranks, arguments = LAYOUTS[layout]
    checkpoint = str(folder / f"{layout}-checkpoint")
    kept = () if part == "whole" else ("--save", checkpoint, "--load", checkpoint)
    return {"name": f"{layout}-{part}", "ranks": ranks, "arguments": [*arguments, *PARTS[part], *kept]}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """Losses by iteration of each run."""
    folder = tmp_path_factory.mktemp("without")
    jobs = [job(layout, part, folder) for layout in LAYOUTS for part in PARTS]
    results = forked_ranks.run(__file__, folder, "train", jobs)
    return {name: dict(read_losses(folder / name)[0]) for name in results}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_is_the_uninterrupted_one(losses: dict[str, dict[int, float]], layout: str) -> None:
    whole, until_2, from_2 = (losses[f"{layout}-{part}"] for part in PARTS)
    assert [*whole] == [1, 2, 3, 4] and [*until_2] == [1, 2] and [*from_2] == [3, 4]
    assert {**until_2, **from_2} == whole
    assert whole[4] < whole[1]


def test_layouts_agree(losses: dict[str, dict[int, float]]) -> None:
    for layout in ("one-rank-distributed", "two-ranks-distributed"):
        assert losses[f"{layout}-whole"] == pytest.approx(losses["one-rank-whole"], rel=1e-2)


def start(launcher: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(Path(fake_cuda.__file__)), launcher, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_the_option_a_run_ends_in_one_line() -> None:
    done = start("megatron", *options(MODEL), "--data-source", "nca://toy")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("nca-plugin")]
    assert lines == [
        "nca-plugin: error: without Transformer Engine and NVIDIA's Apex, a run on CUDA needs "
        f"{OF_NEITHER} --no-rope-fusion --no-masked-softmax-fusion: add --local-kernels (with Hydra +kernels=local), "
        "which adds them all"
    ]
    assert re.search(r"exitcode\s*: 2 ", done.stderr)
    # Megatron has not begun.
    assert "using world size" not in done.stdout and "Traceback" not in done.stderr.partition("torch/distributed")[0]


def test_a_hydra_run(tmp_path: Path, losses: dict[str, dict[int, float]]) -> None:
    arguments = {**MODEL, **TENSOR_PARALLEL, "use-distributed-optimizer": True, "tensorboard-dir": tmp_path / "losses"}
    (tmp_path / "run.yaml").write_text("arguments: {}\n")
    done = start(
        *("hydra", "--config-dir", str(tmp_path), "--config-name", "run", "+kernels=local", "data.source=nca://toy"),
        *(f"arguments.{name}={str(value).lower() if value is True else value}" for name, value in arguments.items()),
        ranks=2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("nca-plugin: ")]
    assert lines == [
        f"nca-plugin: --local-kernels adds {OF_NEITHER} --no-rope-fusion --no-masked-softmax-fusion",
        "nca-plugin: CUDA_DEVICE_MAX_CONNECTIONS=1, which Megatron insists on for this parallelism, is set",
    ]
    assert dict(read_losses(tmp_path / "losses")[0]) == losses["tensor-distributed-whole"]


# The jobs.


def work(_: str, job: forked_ranks.Job, folder: Path) -> dict[str, Any]:
    from nca_plugin.launch.megatron import launch

    own = ("--data-source", "nca://toy", "--local-kernels", "--tensorboard-dir", str(folder / job["name"]))
    try:
        launch([*options(MODEL), *job["arguments"], *own], str)
    except SystemExit as exit:
        # --exit-interval ends the process.
        if exit.code:
            raise
    return {}


if __name__ == "__main__":
    fake_cuda.install()
    forked_ranks.import_megatron()
    forked_ranks.serve(work)
