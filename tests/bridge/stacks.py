"""The same run in every stack: one model, one schedule, one source, as each stack spells them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_runs import MODEL, FinishedRun
from megatron_runs import RECORDING_LAUNCHER as MEGATRON_LAUNCHER

BRIDGE_LAUNCHER = Path(__file__).with_name("bridge_recording_launcher.py")

ROWS = 512
SOURCE = "nca://toy"
ITERATIONS = 20


@dataclass(frozen=True)
class Job:
    """What a stack is asked to train: always the model of `megatron_runs.MODEL`."""

    folder: Path
    """For TensorBoard and batch records."""

    first_weights: Path
    tp: int = 1
    pp: int = 1
    save: Path | None = None
    """Where checkpoints go, and where the run resumes from."""

    exit_at: int | None = None
    """Iteration to stop at, before the last."""

    data: tuple[str, ...] = (f"data.source={SOURCE}",)
    """What the run trains on; only Megatron-Bridge's command reads it."""

    batch: int = 8
    """Samples of an iteration; only Megatron-Bridge's command reads it."""


def megatron(job: Job) -> list[str | Path]:
    arguments: list[str | Path] = [
        *(MEGATRON_LAUNCHER, *MODEL, "--data-source", SOURCE, "--tokenizer-type", "NullTokenizer"),
        *("--vocab-size", str(ROWS), "--train-iters", str(ITERATIONS)),
        *("--pretrained-checkpoint", job.first_weights, "--tensorboard-dir", job.folder / "tensorboard"),
        *("--tensor-model-parallel-size", str(job.tp), "--pipeline-model-parallel-size", str(job.pp)),
    ]
    if job.save is not None:
        arguments += ["--save", job.save, "--load", job.save]
    return arguments if job.exit_at is None else [*arguments, "--exit-interval", str(job.exit_at)]


#: `megatron_runs.MODEL` in Megatron-Bridge's words, and the defaults of Megatron-LM where the recipe has others.
BRIDGE_SETTINGS = (
    *("model.num_layers=4", "model.hidden_size=64", "model.num_attention_heads=4", "model.seq_length=128"),
    *("model.position_embedding_type=rope", "model.share_embeddings_and_output_weights=false"),
    *("model.attention_dropout=0", "model.hidden_dropout=0", "mixed_precision=null", "optimizer.bf16=false"),
    *("train.micro_batch_size=2", "train.global_batch_size=8", "dataset.num_workers=1"),
    *("optimizer.lr=1e-3", "optimizer.min_lr=1e-4", "optimizer.adam_beta2=0.999", "optimizer.weight_decay=0.01"),
    *("scheduler.start_weight_decay=0.01", "scheduler.end_weight_decay=0.01"),
    *("scheduler.lr_warmup_iters=0", "scheduler.lr_decay_iters=20", "ddp.use_distributed_optimizer=true"),
    *("validation.eval_iters=0", "logger.log_interval=1", "logger.tensorboard_log_interval=1"),
    *("checkpoint.save_interval=10", "dataset.skip_getting_attention_mask_from_dataset=false"),
)


def bridge(job: Job) -> list[str | Path]:
    save = "null" if job.save is None else job.save
    settings = [
        *("--recipe", "vanilla_gpt_pretrain_config", *BRIDGE_SETTINGS, *job.data),
        *(f"model.vocab_size={ROWS}", f"train.train_iters={ITERATIONS}", f"train.global_batch_size={job.batch}"),
        *(f"checkpoint.pretrained_checkpoint={job.first_weights}", f"checkpoint.save={save}"),
        *(f"checkpoint.load={save}", f"logger.tensorboard_dir={job.folder / 'tensorboard'}"),
        *(f"model.tensor_model_parallel_size={job.tp}", f"model.pipeline_model_parallel_size={job.pp}"),
        *(() if job.pp == 1 else ("model.pipeline_dtype=torch.float32",)),
        *(() if job.exit_at is None else (f"train.exit_interval={job.exit_at}",)),
    ]
    return [BRIDGE_LAUNCHER, *settings]


def hydra(job: Job) -> list[str | Path]:
    arguments: dict[str, Any] = {
        "pretrained-checkpoint": str(job.first_weights),
        "tensorboard-dir": str(job.folder / "tensorboard"),
        "tensor-model-parallel-size": job.tp,
        "pipeline-model-parallel-size": job.pp,
        "tokenizer-type": "NullTokenizer",
        "vocab-size": ROWS,
        "train-iters": ITERATIONS,
    }
    names = iter(MODEL)
    for name in names:
        is_flag = name == "--untie-embeddings-and-output-weights"
        arguments[name.removeprefix("--")] = True if is_flag else next(names)
    return _hydra(job, {"arguments": arguments}, f"data.source={SOURCE}")


def nemo1(job: Job) -> list[str | Path]:
    """`megatron_runs.MODEL` as a NeMo 1 file has it, with what Megatron-LM calls otherwise beside it."""
    config = {
        "trainer": {
            **{"devices": job.tp * job.pp, "num_nodes": 1, "precision": 32, "max_steps": ITERATIONS},
            **{"log_every_n_steps": 1, "val_check_interval": 10, "limit_val_batches": 0, "gradient_clip_val": 1.0},
        },
        "exp_manager": {"explicit_log_dir": str(job.folder), "create_checkpoint_callback": False},
        "restore_from_path": str(job.first_weights),
        "model": {
            **{"micro_batch_size": 2, "global_batch_size": 8, "encoder_seq_length": 128, "hidden_size": 64},
            **{"num_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128},
            **{"tensor_model_parallel_size": job.tp, "pipeline_model_parallel_size": job.pp},
            **{"position_embedding_type": "rope", "share_embeddings_and_output_weights": False},
            **{"attention_dropout": 0.0, "hidden_dropout": 0.0, "tokenizer": None},
            "data": {"data_impl": "mmap", "num_workers": 1},
            "optim": {
                **{"name": "fused_adam", "lr": 1e-3, "weight_decay": 0.01, "betas": [0.9, 0.999]},
                "sched": {"name": "CosineAnnealing", "warmup_steps": 0, "constant_steps": 0, "min_lr": 1e-4},
            },
        },
    }
    beside = {"tensorboard-dir": job.folder / "tensorboard", "tokenizer-type": "NullTokenizer", "vocab-size": ROWS}
    overrides = [f"arguments.{name}={value}" for name, value in beside.items()]
    return _hydra(job, config, f"data.source={SOURCE}", *overrides)


def _hydra(job: Job, config: dict[str, Any], *overrides: str) -> list[str | Path]:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "run.yaml").write_text(json.dumps(config))
    return [MEGATRON_LAUNCHER, "--config-dir", job.folder, "--config-name", "run", *overrides]


#: Command of a run by stack.
STACKS: dict[str, Callable[[Job], list[str | Path]]] = {
    "megatron": megatron,
    "hydra": hydra,
    "nemo1": nemo1,
    "bridge": bridge,
}


def train(stack: str, job: Job) -> FinishedRun:
    """Run a job on as many CPU ranks as its layout has. Fails if the run does."""
    variables = {"HYDRA": "1"} if stack in ("hydra", "nemo1") else {}
    return start(job.folder, STACKS[stack](job), ranks=job.tp * job.pp, **variables)


def start(folder: Path, command: list[str | Path], *, ranks: int = 1, **environment: str) -> FinishedRun:
    """Run a script or module with torchrun. Fails if the run does."""
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "RECORD_BATCHES_TO": str(folder), **environment}
    done = subprocess.run(
        list(map(str, [*torchrun, *command])), cwd=folder, env=variables, capture_output=True, text=True, timeout=580
    )
    log = done.stdout + done.stderr
    # Megatron-Bridge logs tracebacks of what it does not find, too: the last one is the failure.
    failures = re.split(r"(?=Traceback |nca-plugin: error)", done.stderr)
    assert done.returncode == 0, "".join(failures[-3:])[-6000:]
    return FinishedRun(folder, log)
