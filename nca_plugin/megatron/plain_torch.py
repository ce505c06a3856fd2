"""What the plain PyTorch parts of Megatron lack, which it falls back to without Transformer Engine and Apex, be it on a
GPU or in CPU mode."""

import copy
import functools
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.torch_norm import WrappedTorchNorm


def complete() -> None:
    """Mend both for this process. Where Megatron uses Transformer Engine or Apex, nothing changes."""
    _allow_sequence_parallel_norms()
    _let_distributed_adam_resume()


def _allow_sequence_parallel_norms() -> None:
    """Let torch's norms, which Megatron uses without Transformer Engine and Apex, run under `--sequence-parallel`.

    Megatron refuses them. What they lack is the mark by which it sums their gradients over tensor-parallel ranks.
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
    """Let a run with the distributed optimizer and torch's Adam, which takes the place of the fused ones, resume.

    Megatron asks for the state before the first step, in which torch makes it; the count of steps, which it stores for
    a group of parameters, does not reach theirs; and a rank's part of parameters in float32 is a view of the model's,
    which torch refuses to write to while it records gradients.
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
            # megatron-core 0.15 asks for it; `load_state_dict` sets it then.
            tensors = {"step": torch.tensor(0.0), **tensors}
        set_states(self, model_param, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states_with_any_step
    DistributedOptimizer.sharded_state_dict = sharded_state_dict_of_zeros
    DistributedOptimizer.load_state_dict = load_state_dict_with_own_steps
