"""`model.optim` of a NeMo 1 configuration: the optimizer and the schedule of its learning rate.

NeMo's schedulers (nemo/core/optim/lr_scheduler.py) see the number of steps done, 0 at the first, and so does
Megatron-LM's, in samples. With W warm-up steps, NeMo's first learning rate is lr / (W + 1), which is Megatron-LM's
`--lr-warmup-init`; only CosineAnnealing with `constant_steps` starts at 0 and keeps `min_lr` for those steps at the
end, which is Megatron-LM's own cosine over the steps before them.
"""

from typing import Any, Final

from nca_plugin.nemo1.rows import (
    Arguments,
    CannotBeHad,
    Config,
    Refused,
    Row,
    Translated,
    boolean,
    checked_number,
    count,
    ignored,
    name,
    real,
    share,
    within,
)

_OPTIM: Final = "model.optim"
_SCHED: Final = f"{_OPTIM}.sched"
_NAME: Final = f"{_SCHED}.name"

#: Every one is Adam with decoupled weight decay; whether it keeps the optimizer's state in shards.
_OPTIMIZERS: Final = {
    "fused_adam": False,
    "megatron_fused_adam": False,
    "adamw": False,
    "distributed_fused_adam": True,
    "mcore_distributed_optim": True,
}

_NO_SCHEDULE: Final = "a constant learning rate"

_DECAY_STYLES: Final = {
    "CosineAnnealing": "cosine",
    "CosineAnnealingExp": "cosine",
    "WarmupAnnealing": "linear",
    "WarmupPolicy": "constant",
    "WarmupHoldPolicy": "constant",
}


def _optimizer(value: Any, config: Config) -> Arguments:
    if name(value) not in _OPTIMIZERS:
        raise CannotBeHad(f"Megatron-LM's counterparts are of {', '.join(_OPTIMIZERS)}")
    return {"optimizer": "adam"} | ({"use-distributed-optimizer": True} if _OPTIMIZERS[value] else {})


def _is_distributed(config: Config) -> bool:
    return _OPTIMIZERS.get(config.get(f"{_OPTIM}.name", name) or "", False)


def _betas(value: Any, config: Config) -> Arguments:
    if not isinstance(value, list) or len(value) != 2:
        raise CannotBeHad("must be a list of two numbers")
    return {"adam-beta1": checked_number(value[0]), "adam-beta2": checked_number(value[1])}


def _gradient_dtype(value: Any, config: Config) -> Arguments:
    """Gradients are reduced in float32 unless the distributed optimizer is told otherwise."""
    match str(value).removeprefix("torch."):
        case "fp32" | "float32" | "float":
            return {}
        case "bf16" | "bfloat16":
            return {"grad-reduce-in-bf16": True} if _is_distributed(config) else {}
    raise CannotBeHad("Megatron-LM reduces gradients in fp32 or bf16")


def _overlap(argument: str, *needs: str) -> Any:
    """Return a rule for an overlap of the distributed optimizer, which Megatron-LM allows only with `needs`."""

    def rule(value: Any, config: Config) -> Arguments:
        needed = all(config.get(f"{_OPTIM}.{need}", boolean) for need in needs)
        is_on = boolean(value) and _is_distributed(config) and needed
        return {argument: True} if is_on else {}

    return rule


def _steps(config: Config, phase: str, max_steps: int) -> int:
    """Return `<phase>_steps`, or `<phase>_ratio` of the steps."""
    steps, ratio = config.get(f"{_SCHED}.{phase}_steps", count), config.get(f"{_SCHED}.{phase}_ratio", share)
    if steps is not None and ratio is not None:
        raise CannotBeHad(f"{phase}_steps and {phase}_ratio contradict each other")
    if ratio is not None:
        return int(ratio * max_steps)
    return steps or 0


def _schedule(value: Any, config: Config) -> Arguments:
    """Return the whole schedule, from all keys of `sched`."""
    if value == _NO_SCHEDULE:
        if any(key.startswith(f"{_SCHED}.") for key in config.values):
            raise CannotBeHad("the schedule needs a name")
        return {"lr-decay-style": "constant"}
    if name(value) not in _DECAY_STYLES:
        raise CannotBeHad(f"Megatron-LM's schedules are those of {', '.join(_DECAY_STYLES)}")
    style = _DECAY_STYLES[value]
    train_steps = config.read("trainer.max_steps", count)
    max_steps = config.read(f"{_SCHED}.max_steps", count)
    warmup = _steps(config, "warmup", max_steps)
    constant = _steps(config, "constant", max_steps)
    hold = _steps(config, "hold", max_steps)
    if (constant and style != "cosine") or (hold and style != "constant"):
        raise CannotBeHad("constant_steps belong to CosineAnnealing, hold_steps to WarmupHoldPolicy")
    if constant > max_steps:
        raise CannotBeHad(
            f"must be at most the {max_steps} steps of the schedule, of which it is a part", f"{_SCHED}.constant_steps"
        )
    of_decay = config.get(f"{_SCHED}.max_steps_for_lr_sched", count)
    if of_decay and value != "CosineAnnealingExp":
        raise CannotBeHad("max_steps_for_lr_sched belong to CosineAnnealingExp")
    if style == "constant" and max_steps < train_steps:
        raise CannotBeHad(f"it drops to min_lr after {max_steps} steps, Megatron-LM's constant schedule never does")
    lr = config.read(f"{_OPTIM}.lr", checked_number)
    return {
        "lr-decay-style": style,
        # Megatron-LM wants it above the warm-up. Where it is not, no step is between them, and this gives NeMo's
        # learning rates too.
        "lr-decay-iters": max((of_decay or max_steps) - constant, warmup + 1),
        "lr-warmup-iters": warmup,
        "lr-warmup-init": 0.0 if constant or not warmup else lr / (warmup + 1),
        "min-lr": config.read(f"{_SCHED}.min_lr", checked_number),
    }


def _weight_decay(config: Config) -> float:
    """Apex's optimizers decay nothing by default, torch's AdamW 0.01."""
    return 0.01 if config[f"{_OPTIM}.name"] == "adamw" else 0.0


def _state_dtype(value: Any, config: Config) -> Arguments:
    """Megatron-core's optimizer, in NeMo too, does not read it."""
    is_read = config[f"{_OPTIM}.name"] != "mcore_distributed_optim"
    if is_read and name(value).removeprefix("torch.") not in ("fp32", "float32"):
        raise CannotBeHad("the optimizer's state is float32")
    return {}


ROWS: Final[tuple[Row, ...]] = (
    Translated(f"{_OPTIM}.name", _optimizer, ("optimizer", "use-distributed-optimizer"), is_required=True),
    real(f"{_OPTIM}.lr", "lr", is_required=True),
    real(f"{_OPTIM}.weight_decay", "weight-decay", default=_weight_decay, source="Apex's FusedAdam 0, AdamW 0.01"),
    Translated(f"{_OPTIM}.betas", _betas, ("adam-beta1", "adam-beta2")),
    real(f"{_OPTIM}.eps", "adam-eps"),
    Translated(f"{_OPTIM}.grad_sync_dtype", _gradient_dtype, ("grad-reduce-in-bf16",)),
    Translated(f"{_OPTIM}.overlap_grad_sync", _overlap("overlap-grad-reduce"), ("overlap-grad-reduce",)),
    *(
        Translated(f"{_OPTIM}.{key}", _overlap("overlap-param-gather", "overlap_grad_sync"), ("overlap-param-gather",))
        for key in ("overlap_param_sync", "overlap_param_gather")
    ),
    Refused(f"{_OPTIM}.bias_correction", "Megatron-LM's Adam corrects its bias", unless=(True,)),
    Refused(f"{_OPTIM}.adam_w_mode", "Megatron-LM's weight decay is decoupled", unless=(True,)),
    Refused(f"{_OPTIM}.amsgrad", "Megatron-LM's Adam is not AMSGrad"),
    Translated(f"{_OPTIM}.dtype", _state_dtype, (), note="must be fp32, unless `name` is mcore_distributed_optim"),
    *ignored(
        "how the optimizer stores and sends, not what it computes",
        (
            f"{_OPTIM}.{key}"
            for key in (
                *("bucket_cap_mb", "contiguous_grad_buffer", "contiguous_param_buffer", "param_sync_dtype"),
                *("store_params", "store_param_remainders", "nccl_ub", "capturable", "master_weights", "set_grad_none"),
                *("distribute_within_nodes", "pipeline_size", "ddp_bucket_size", "average_in_collective"),
                *("align_param_gather", "overlap_param_gather_with_optimizer_step", "check_for_nan_in_grad"),
                "lock_timeout",
            )
        ),
    ),
    Translated(
        _NAME,
        _schedule,
        ("lr-decay-style", "lr-decay-iters", "lr-warmup-iters", "lr-warmup-init", "min-lr"),
        default=_NO_SCHEDULE,
        source="NeMo makes no scheduler without `sched`",
    ),
    within(f"{_SCHED}.max_steps", _NAME, default=lambda config: config["trainer.max_steps"]),
    within(f"{_SCHED}.max_steps_for_lr_sched", _NAME),
    *(
        within(f"{_SCHED}.{key}", _NAME)
        for key in (*("warmup_steps", "warmup_ratio", "constant_steps", "constant_ratio", "hold_steps", "hold_ratio"),)
    ),
    within(f"{_SCHED}.min_lr", _NAME, default=0.0),
    *ignored("for schedulers that watch a loss", (f"{_SCHED}.{key}" for key in ("monitor", "reduce_on_plateau"))),
)
