"""The same run in every stack: one model, one schedule, one source, as each stack spells them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
        *("--recipe", "vanilla_gpt_pretrain_config", *BRIDGE_SETTINGS, f"data.source={SOURCE}"),
        *(f"model.vocab_size={ROWS}", f"train.train_iters={ITERATIONS}"),
        *(f"checkpoint.pretrained_checkpoint={job.first_weights}", f"checkpoint.save={save}"),
        *(f"checkpoint.load={save}", f"logger.tensorboard_dir={job.folder / 'tensorboard'}"),
        *(f"model.tensor_model_parallel_size={job.tp}", f"model.pipeline_model_parallel_size={job.pp}"),
        *(() if job.pp == 1 else ("model.pipeline_dtype=torch.float32",)),
        *(() if job.exit_at is None else (f"train.exit_interval={job.exit_at}",)),
    ]
    return [BRIDGE_LAUNCHER, *settings]


#: Command of a run by stack.
STACKS: dict[str, Callable[[Job], list[str | Path]]] = {"megatron": megatron, "bridge": bridge}


def train(stack: str, job: Job) -> FinishedRun:
    """Run a job on as many CPU ranks as its layout has. Fails if the run does."""
    return start(job.folder, STACKS[stack](job), ranks=job.tp * job.pp)


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
