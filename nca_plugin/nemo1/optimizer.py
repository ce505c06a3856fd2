"""The rules of keys.yaml for `model.optim`: the optimizer and the schedule of its learning rate.

NeMo's schedulers (nemo/core/optim/lr_scheduler.py) see the number of steps done, 0 at the first, and so does
Megatron-LM's, in samples. With W warm-up steps, NeMo's first learning rate is lr / (W + 1), which is Megatron-LM's
`--lr-warmup-init`; only CosineAnnealing with `constant_steps` starts at 0 and keeps `min_lr` for those steps at the
end, which is Megatron-LM's own cosine over the steps before them.
"""

from typing import Any, Final

from nca_plugin.nemo1.values import (
    Arguments,
    CannotBeHad,
    Config,
    boolean,
    check,
    count,
    dtype,
    name,
    number,
    share,
)

_SCHED: Final = "model.optim.sched"
#: What keys.yaml has as the name of the schedule of a file without one.
_NO_SCHEDULE: Final = "a constant learning rate"

_DECAY_STYLES: Final = {
    "CosineAnnealing": "cosine",
    "CosineAnnealingExp": "cosine",
    "WarmupAnnealing": "linear",
    "WarmupPolicy": "constant",
    "WarmupHoldPolicy": "constant",
}


def is_distributed(config: Config) -> bool:
    """Return whether the optimizer's state is kept in shards, as keys.yaml has it for these names."""
    return config.get("model.optim.name", name) in ("distributed_fused_adam", "mcore_distributed_optim")


def betas(value: Any, config: Config) -> Arguments:
    check(isinstance(value, list) and len(value) == 2, "must be a list of two numbers")
    return {"adam-beta1": number(value[0]), "adam-beta2": number(value[1])}


def overlap_param_gather(value: Any, config: Config) -> Arguments:
    """Megatron-LM allows it only with `--overlap-grad-reduce`."""
    overlaps_gradients = config.get("model.optim.overlap_grad_sync", boolean)
    is_on = boolean(value) and is_distributed(config) and overlaps_gradients
    return {"overlap-param-gather": True} if is_on else {}


def weight_decay(config: Config) -> float:
    """Return the default: Apex's optimizers decay nothing by themselves, torch's AdamW 0.01."""
    return 0.01 if config["model.optim.name"] == "adamw" else 0.0


def state_dtype(value: Any, config: Config) -> Arguments:
    """Megatron-core's optimizer, in NeMo too, does not read it."""
    if config["model.optim.name"] != "mcore_distributed_optim":
        check(dtype(name(value)) in ("fp32", "float32"), "the optimizer's state is float32")
    return {}


def _steps(config: Config, phase: str, max_steps: int) -> int:
    """Return `<phase>_steps`, or `<phase>_ratio` of the steps."""
    steps, ratio = config.get(f"{_SCHED}.{phase}_steps", count), config.get(f"{_SCHED}.{phase}_ratio", share)
    check(steps is None or ratio is None, f"{phase}_steps and {phase}_ratio contradict each other")
    return int(ratio * max_steps) if ratio is not None else steps or 0


def schedule(value: Any, config: Config) -> Arguments:
    """Return the whole schedule, from all keys of `sched`."""
    if value == _NO_SCHEDULE:
        has_keys = any(key.startswith(f"{_SCHED}.") for key in config.values)
        check(not has_keys, "the schedule needs a name")
        return {"lr-decay-style": "constant"}
    if name(value) not in _DECAY_STYLES:
        raise CannotBeHad(f"Megatron-LM's schedules are those of {', '.join(_DECAY_STYLES)}")
    style = _DECAY_STYLES[value]
    train_steps = config.read("trainer.max_steps", count)
    max_steps = config.read(f"{_SCHED}.max_steps", count)
    warmup, constant, hold = (_steps(config, phase, max_steps) for phase in ("warmup", "constant", "hold"))
    fits_style = (not constant or style == "cosine") and (not hold or style == "constant")
    check(fits_style, "constant_steps belong to CosineAnnealing, hold_steps to WarmupHoldPolicy")
    if constant > max_steps:
        raise CannotBeHad(
            f"must be at most the {max_steps} steps of the schedule, of which it is a part", f"{_SCHED}.constant_steps"
        )
    of_decay = config.get(f"{_SCHED}.max_steps_for_lr_sched", count)
    is_read = not of_decay or value == "CosineAnnealingExp"
    check(is_read, "max_steps_for_lr_sched belong to CosineAnnealingExp")
    if style == "constant" and max_steps < train_steps:
        raise CannotBeHad(f"it drops to min_lr after {max_steps} steps, Megatron-LM's constant schedule never does")
    lr = config.read("model.optim.lr", number)
    return {
        "lr-decay-style": style,
        # Megatron-LM wants it above the warm-up. Where it is not, no step is between them, and this gives NeMo's
        # learning rates too.
        "lr-decay-iters": max((of_decay or max_steps) - constant, warmup + 1),
        "lr-warmup-iters": warmup,
        "lr-warmup-init": 0.0 if constant or not warmup else lr / (warmup + 1),
        "min-lr": config.read(f"{_SCHED}.min_lr", number),
    }
