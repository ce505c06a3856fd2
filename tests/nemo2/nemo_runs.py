"""Real runs of NeMo's own loop: a recipe of NeMo's, made small by arguments alone, on CPU ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

from megatron_runs import FinishedRun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LAUNCHER = Path(__file__).with_name("nemo_recording_launcher.py")

TOY = ("data=nca", "data.preset=toy")

ITERATIONS = 20
SAVE_AT = 10

SETTINGS = (
    *("model.config.num_layers=4", "model.config.hidden_size=64", "model.config.ffn_hidden_size=256"),
    *("model.config.num_attention_heads=4", "model.config.num_query_groups=4", "model.config.kv_channels=16"),
    *("model.config.seq_length=128", "data.num_workers=1"),
    *("data.global_batch_size=8", "data.micro_batch_size=2", f"trainer.max_steps={ITERATIONS}"),
    *("trainer.limit_val_batches=1", f"trainer.val_check_interval={SAVE_AT}", "trainer.log_every_n_steps=1"),
    *("trainer.plugins=None", "optim.config.bf16=false", "optim.config.lr=1e-3", "optim.lr_scheduler.warmup_steps=2"),
    *(f"log.ckpt.every_n_train_steps={SAVE_AT}", "log.ckpt.train_time_interval=None", "log.ckpt.save_top_k=-1"),
    "log.ckpt.monitor=reduced_train_loss",
)


class NemoRun(FinishedRun):
    @property
    def losses(self) -> dict[int, float]:
        """Training loss by iteration, float32."""
        events = EventAccumulator(str(self.folder / "tb_logs" / "default"), size_guidance={"scalars": 0}).Reload()
        return {event.step + 1: event.value for event in events.Scalars("reduced_train_loss")}

    def saved_at(self, iteration: int) -> Path:
        """The checkpoint after so many iterations."""
        checkpoints = self.folder / "default" / "checkpoints"
        (found,) = (path for path in checkpoints.glob(f"*step={iteration - 1}-*") if not path.name.endswith("-last"))
        return found


def start(
    folder: Path, *arguments: str, data: tuple[str, ...] = TOY, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run `nemo llm pretrain` with `folder` for everything that it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *(str(LAUNCHER), "llm", "pretrain", "--factory", "llama32_1b", "--yes", *data, *SETTINGS),
        *(f"trainer.devices={ranks}", f"log.log_dir={folder}", *arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECORD_BATCHES_TO": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def run(folder: Path, *arguments: str, data: tuple[str, ...] = TOY, ranks: int = 1) -> NemoRun:
    """Run `nemo llm pretrain`. Fails if the run does."""
    done = start(folder, *arguments, data=data, ranks=ranks)
    log = done.stdout + done.stderr
    failure = re.search(r"Unexpected error.*|nca-plugin: error.*", log)
    assert done.returncode == 0, failure[0][:3000] if failure else log[-3000:]
    return NemoRun(folder, log)
