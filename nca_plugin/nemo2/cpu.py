"""What a run of NeMo 2 needs in CPU mode beyond `nca_plugin.megatron.cpu`: settings, in what NeMo-Run would start.

NeMo's recipes are written for GPUs. NeMo itself takes Megatron's local layers where Transformer Engine is missing.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import torch.utils.cpp_extension

from nca_plugin.megatron.cpu_settings import apply_settings, check_sections


@contextlib.contextmanager
def without_cuda_compiler() -> Iterator[None]:
    """Where there is no CUDA device, keep Megatron from compiling an allocator for one while it is imported, which it
    can do without.

    megatron-core 0.15 does so wherever there is a CUDA toolkit, and ends with a traceback if there is no device.
    """
    if torch.cuda.is_available():
        yield
        return

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("there is no CUDA device to compile for")

    load_inline = torch.utils.cpp_extension.load_inline
    torch.utils.cpp_extension.load_inline = refuse
    try:
        yield
    finally:
        torch.utils.cpp_extension.load_inline = load_inline


def do_not_gather_timers() -> None:
    """Keep the first rank from gathering the timers of all ranks for its log, in which the others take no part: gloo
    would wait for them. Call after NeMo is imported."""
    from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter

    ProgressPrinter.log_megatron_timers = lambda self, timers: None


def adapt(task: Any) -> list[str]:
    """Set what a run without a GPU needs in the call of `nemo.collections.llm.pretrain`, a `run.Partial`.

    Returns:
        What changed, as `key=value`.

    Raises:
        NCAPluginError: settings that need a GPU.
    """
    trainer = task.trainer
    strategy = trainer.strategy
    plugins = trainer.plugins if isinstance(trainer.plugins, list | tuple) else [trainer.plugins]
    optimizer = None if task.optim is None else task.optim.config
    check_sections({"model.config": task.model.config, "optim.config": optimizer, "trainer.strategy.ddp": strategy.ddp})
    for plugin in plugins:
        check_sections({"trainer.plugins": plugin})
    changes = apply_settings(task.model.config, "model", "model.config")
    changes += apply_settings(strategy.ddp, "ddp", "trainer.strategy.ddp")
    if task.optim is not None:
        changes += apply_settings(task.optim.config, "optimizer", "optim.config")
    changes += apply_settings(task.data, "dataset", "data")
    for owner, key, name, value in (
        (trainer, "trainer.", "accelerator", "cpu"),
        (strategy, "trainer.strategy.", "ckpt_async_save", False),
        # torch's Adam keeps its count of steps in a tensor, which the other format has no place for.
        (strategy, "trainer.strategy.", "ckpt_optim_fully_reshardable", True),
    ):
        if getattr(owner, name) != value:
            setattr(owner, name, value)
            changes.append(f"{key}{name}={value}")
    return changes
