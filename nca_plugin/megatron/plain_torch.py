"""Completes the plain PyTorch parts to which Megatron falls back without Transformer Engine and Apex, on any device."""

import copy
import functools
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.torch_norm import WrappedTorchNorm


def complete() -> None:
    """Patch norms and optimizer in this process. Where Megatron uses Transformer Engine or Apex, nothing changes."""
    _allow_sequence_parallel_norms()
    _let_distributed_adam_resume()


def _allow_sequence_parallel_norms() -> None:
    """Allow PyTorch's norms under `--sequence-parallel`.

    Megatron refuses them, because they lack the mark by which it sums their gradients over tensor-parallel ranks.
    """
    make_norm = WrappedTorchNorm.__new__

    @functools.wraps(make_norm)
    def make_marked_norm(cls: type, config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        without = copy.copy(config)
        without.sequence_parallel = False
        norm: torch.nn.Module = make_norm(cls, without, *args, **kwargs)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm

    WrappedTorchNorm.__new__ = make_marked_norm


def _let_distributed_adam_resume() -> None:
    """Allow a run with the distributed optimizer and PyTorch's Adam, which replaces the fused ones, to resume.

    This solves three problems. Megatron needs the optimizer's state before the first step, in which PyTorch makes it.
    Megatron stores the number of steps for a group of parameters, and does not copy it to each parameter's state. And a
    rank's part of parameters in float32 is a view of the model's, to which PyTorch does not write while it records
    gradients.
    """
    sharded_state_dict = DistributedOptimizer.sharded_state_dict

    @functools.wraps(sharded_state_dict)
    def sharded_state_dict_of_zeros(
        self: Any, model_sharded_state_dict: Any, is_loading: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        if is_loading and isinstance(self.optimizer, torch.optim.Adam) and not self.optimizer.state:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return sharded_state_dict(self, model_sharded_state_dict, is_loading, *args, **kwargs)

    load_state_dict = DistributedOptimizer.load_state_dict

    @functools.wraps(load_state_dict)
    def load_state_dict_with_own_steps(self: Any, state_dict: Any) -> None:
        with torch.no_grad():
            load_state_dict(self, state_dict)
        if isinstance(self.optimizer, torch.optim.Adam):
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in self.optimizer.state:
                        self.optimizer.state[parameter]["step"] = torch.tensor(float(group["step"]))

    set_states = DistributedOptimizer._set_main_param_and_optimizer_states

    @functools.wraps(set_states)
    def set_states_with_any_step(self: Any, model_param: Any, tensors: Any) -> None:
        if isinstance(self.optimizer, torch.optim.Adam):
            # megatron-core 0.15 needs this entry. `load_state_dict` sets its value afterwards.
            tensors = {"step": torch.tensor(0.0), **tensors}
        set_states(self, model_param, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states_with_any_step
    DistributedOptimizer.sharded_state_dict = sharded_state_dict_of_zeros
    DistributedOptimizer.load_state_dict = load_state_dict_with_own_steps
