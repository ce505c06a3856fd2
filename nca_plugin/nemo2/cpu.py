"""Adapts a run of NeMo 2 to CPU mode, beyond `nca_plugin.megatron.cuda_on_cpu`: settings of NeMo-Run's task.

NeMo's recipes are written for GPUs. Without Transformer Engine, NeMo itself uses Megatron's local layers.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import torch.utils.cpp_extension

from nca_plugin.megatron import cpu_mode
from nca_plugin.megatron.cpu_settings import apply_settings, check_sections


@contextlib.contextmanager
def without_cuda_compiler() -> Iterator[None]:
    """Without a CUDA device, keep Megatron from compiling an allocator for one when it is imported within the context.

    megatron-core 0.15 compiles it on every machine with a CUDA toolkit, and fails if there is no device. It can do
    without the allocator.
    """
    if cpu_mode.has_cuda():
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
    """Keep the first rank from gathering the timers of all ranks for its log. Call this after NeMo is imported.

    The other ranks do not take part in the gathering, and gloo would wait for them.
    """
    from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter

    ProgressPrinter.log_megatron_timers = lambda self, timers: None


def adapt(task: Any) -> list[str]:
    """Set the values that a run without a GPU needs in a task, a `run.Partial` of `nemo.collections.llm.pretrain`.

    Returns:
        The changes, as `key=value`.

    Raises:
        NCAPluginError: if settings need a GPU.
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
        # PyTorch's Adam stores its number of steps in a tensor, for which the other format has no place.
        (strategy, "trainer.strategy.", "ckpt_optim_fully_reshardable", True),
    ):
        if getattr(owner, name) != value:
            setattr(owner, name, value)
            changes.append(f"{key}{name}={value}")
    return changes
