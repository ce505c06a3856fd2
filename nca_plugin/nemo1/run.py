"""`trainer`, `exp_manager` and the top of a NeMo 1 configuration: how long, in which precision, where to."""

from pathlib import PurePosixPath
from typing import Any, Final

from nca_plugin.nemo1.rows import (
    Arguments,
    CannotBeHad,
    Config,
    Ignored,
    Refused,
    Row,
    Translated,
    boolean,
    checked_number,
    ignored,
    name,
    whole,
    within,
)

#: NeMo's spellings (nemo/collections/nlp/parts/utils_funcs.py).
_PRECISIONS: Final = {"bf16": "bf16", "bf16-mixed": "bf16", "16": "fp16", "16-mixed": "fp16", "32": "", "32-true": ""}

_CHECKPOINTS: Final = "exp_manager.checkpoint_callback_params"
_WANDB: Final = "exp_manager.wandb_logger_kwargs"


def precision(value: Any) -> str:
    """Return `bf16`, `fp16` or, for float32, an empty string."""
    if str(value) not in _PRECISIONS:
        raise CannotBeHad(f"NeMo's precisions are {', '.join(_PRECISIONS)}")
    return _PRECISIONS[str(value)]


def _precision(value: Any, config: Config) -> Arguments:
    name = precision(value)
    # NeMo's fp16 keeps float32 parameters, and with them float32 gradients.
    accumulate = {"accumulate-allreduce-grads-in-fp32": True} if name == "fp16" else {}
    return ({name: True} if name else {}) | accumulate


def _max_steps(value: Any, config: Config) -> Arguments:
    steps = whole(value)
    if steps <= 0:
        raise CannotBeHad("must be a number of steps: Megatron-LM has no epochs")
    return {"train-iters": steps}


def _eval_interval(value: Any, config: Config) -> Arguments:
    if isinstance(value, float) and value <= 1:
        raise CannotBeHad("must be a whole number of steps: a part of an epoch has no counterpart")
    return {"eval-interval": whole(value)}


def _eval_iters(value: Any, config: Config) -> Arguments:
    if isinstance(value, float) and value == 1:
        raise CannotBeHad("the whole set, which is NeMo's default: set a whole number of batches")
    return {"eval-iters": whole(value)}


def _clip(value: Any, config: Config) -> Arguments:
    return {"clip-grad": max(checked_number(value), 0.0)}


def _log_interval(value: Any, config: Config) -> Arguments:
    steps = whole(value)
    return {"log-interval": steps, "tensorboard-log-interval": steps}


def _minutes(value: Any, config: Config) -> Arguments:
    """Lightning's `days:hours:minutes:seconds`."""
    parts = str(value).split(":")
    if len(parts) != 4:
        raise CannotBeHad("must be days:hours:minutes:seconds")
    days, hours, minutes, seconds = map(whole, parts)
    return {"exit-duration-in-mins": ((days * 24 + hours) * 60 + minutes) + seconds // 60}


def _processes(value: Any, config: Config) -> Arguments:
    _count(value)
    return {}


def _count(value: Any) -> int | None:
    """Return how many devices or nodes a value stands for, None where it leaves it open."""
    if value in ("auto", -1, "-1"):
        return None
    return len(value) if isinstance(value, list) else whole(value)


def world_size(config: Config) -> int | None:
    """Return the number of processes that the configuration is for, None if it leaves it open."""
    devices, nodes = (config.get(f"trainer.{key}", _count) for key in ("devices", "num_nodes"))
    return None if devices is None or nodes is None else devices * nodes


def _log_folder(config: Config) -> PurePosixPath:
    """Return NeMo's folder (nemo/utils/exp_manager.py, `get_log_dir`)."""
    given = config.get("exp_manager.explicit_log_dir", name)
    if given is not None:
        return PurePosixPath(given)
    folder = PurePosixPath(config.read("exp_manager.exp_dir", name)) / config.read("exp_manager.name", name)
    version = config.get("exp_manager.version", name)
    if version is not None:
        return folder / version
    if not config.get("exp_manager.resume_if_exists", boolean):
        raise CannotBeHad(
            "without exp_manager.resume_if_exists NeMo makes a folder named after the date: set "
            "exp_manager.explicit_log_dir or exp_manager.version"
        )
    return folder


def _checkpoint_folder(config: Config) -> str:
    given = config.get(f"{_CHECKPOINTS}.dirpath", name)
    return str(_log_folder(config) / "checkpoints") if given is None else given


def _is_managed(config: Config) -> bool:
    """Whether there is a section `exp_manager`: without it NeMo neither saves nor logs to files."""
    return any(key.startswith("exp_manager.") for key in config.values)


def _save(value: Any, config: Config) -> Arguments:
    if not boolean(value) or not _is_managed(config):
        return {}
    steps = config.read(f"{_CHECKPOINTS}.every_n_train_steps", whole)
    return {"save": _checkpoint_folder(config), "save-interval": steps}


def _load(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    may_be_missing = config.get("exp_manager.resume_ignore_no_checkpoint", boolean)
    missing = {} if may_be_missing else {"exit-on-missing-checkpoint": True}
    # Lightning restores the scheduler with the checkpoint: a longer run keeps the schedule that it began with.
    return {"load": _checkpoint_folder(config), "use-checkpoint-opt-param-scheduler": True} | missing


def _tensorboard(value: Any, config: Config) -> Arguments:
    return {"tensorboard-dir": str(_log_folder(config))} if boolean(value) and _is_managed(config) else {}


def _wandb(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    project, run, entity, folder = (
        config.get(f"{_WANDB}.{key}", name) for key in ("project", "name", "entity", "save_dir")
    )
    if project is None or run is None:
        raise CannotBeHad(f"needs {_WANDB}.project and {_WANDB}.name")
    return {
        "wandb-project": project,
        "wandb-exp-name": run,
        "wandb-save-dir": str(_log_folder(config)) if folder is None else folder,
    } | ({} if entity is None else {"wandb-entity": entity})


def weights(value: Any, config: Config) -> Arguments:
    """A checkpoint whose weights the run starts from, at step 0."""
    if name(value).endswith((".nemo", ".ckpt")):
        raise CannotBeHad("Megatron-LM cannot read NeMo's checkpoints: name the folder of a Megatron-LM checkpoint")
    return {"pretrained-checkpoint": str(value)}


def _dotted(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


ROWS: Final[tuple[Row, ...]] = (
    Translated("trainer.max_steps", _max_steps, ("train-iters",), is_required=True),
    Translated("trainer.devices", _processes, (), default="auto", note="times `trainer.num_nodes`: the processes"),
    Translated("trainer.num_nodes", _processes, (), default=1, note="times `trainer.devices`: the processes"),
    Translated(
        "trainer.precision",
        _precision,
        ("bf16", "fp16", "accumulate-allreduce-grads-in-fp32"),
        default=32,
        source="Lightning's Trainer",
    ),
    Translated("trainer.val_check_interval", _eval_interval, ("eval-interval",), is_required=True),
    Translated(
        "trainer.limit_val_batches",
        _eval_iters,
        ("eval-iters",),
        default=1.0,
        source="Lightning's Trainer: the whole set",
    ),
    Translated(
        "trainer.log_every_n_steps",
        _log_interval,
        ("log-interval", "tensorboard-log-interval"),
        default=50,
        source="Lightning's Trainer",
    ),
    Translated("trainer.gradient_clip_val", _clip, ("clip-grad",), default=0.0, source="Lightning's Trainer: none"),
    Translated("trainer.max_time", _minutes, ("exit-duration-in-mins",)),
    Translated(
        "trainer.deterministic",
        lambda value, _: {"deterministic-mode": True} if boolean(value) else {},
        ("deterministic-mode",),
    ),
    Refused("trainer.accumulate_grad_batches", "NeMo takes micro-batches from model.global_batch_size", unless=(1,)),
    Refused("trainer.limit_train_batches", "Megatron-LM trains on train-iters batches", unless=(1.0,)),
    Refused("trainer.overfit_batches", "Megatron-LM cannot repeat batches", unless=(0,)),
    Refused("trainer.fast_dev_run", "set trainer.max_steps instead"),
    Refused("trainer.gradient_clip_algorithm", "Megatron-LM clips by the norm", unless=("norm",)),
    *ignored("NeMo's pretraining never tests", _dotted("trainer", "limit_test_batches", "limit_predict_batches")),
    *ignored(
        "trainer.max_steps decides",
        _dotted("trainer", "max_epochs", "min_steps", "min_epochs", "check_val_every_n_epoch"),
    ),
    *ignored("Megatron-LM validates at its own times", _dotted("trainer", "num_sanity_val_steps")),
    *ignored(
        "of Lightning's, without effect on the training",
        _dotted(
            "trainer",
            *("accelerator", "logger", "enable_checkpointing", "replace_sampler_ddp", "use_distributed_sampler"),
            *("benchmark", "enable_model_summary", "enable_progress_bar", "profiler", "detect_anomaly", "strategy"),
            *("default_root_dir", "inference_mode", "barebones", "sync_batchnorm", "callbacks", "plugins"),
            "reload_dataloaders_every_n_epochs",
        ),
    ),
    Translated(
        "exp_manager.create_checkpoint_callback",
        _save,
        ("save", "save-interval"),
        default=True,
        source="ExpManagerConfig",
    ),
    within(f"{_CHECKPOINTS}.dirpath", "exp_manager.create_checkpoint_callback"),
    within(
        f"{_CHECKPOINTS}.every_n_train_steps",
        "exp_manager.create_checkpoint_callback",
        default=lambda config: config["trainer.val_check_interval"],
    ),
    Translated(
        "exp_manager.resume_if_exists",
        _load,
        ("load", "use-checkpoint-opt-param-scheduler", "exit-on-missing-checkpoint"),
    ),
    within("exp_manager.resume_ignore_no_checkpoint", "exp_manager.resume_if_exists"),
    *(
        within(f"exp_manager.{key}", "exp_manager.create_checkpoint_callback", default=default)
        for key, default in (
            ("explicit_log_dir", None),
            ("exp_dir", "nemo_experiments"),
            ("name", "default"),
            ("version", None),
        )
    ),
    Translated(
        f"{_CHECKPOINTS}.async_save", lambda value, _: {"async-save": True} if boolean(value) else {}, ("async-save",)
    ),
    *ignored(
        "Megatron-LM keeps every checkpoint it saves",
        _dotted(_CHECKPOINTS, "save_top_k", "monitor", "mode", "save_last", "save_best_model", "every_n_epochs"),
    ),
    Ignored(f"{_CHECKPOINTS}.save_last_n_optim_states", "Megatron-LM keeps the optimizer's state in every checkpoint"),
    *ignored(
        "Megatron-LM keeps its checkpoints and logs in a layout of its own",
        (
            *_dotted(_CHECKPOINTS, "filename", "filepath", "prefix", "postfix", "verbose", "model_parallel_size"),
            *_dotted(_CHECKPOINTS, "always_save_nemo", "save_nemo_on_train_end", "auto_insert_metric_name"),
            *_dotted(_CHECKPOINTS, "save_on_train_epoch_end"),
            *_dotted("exp_manager", "use_datetime_version", "resume_past_end", "files_to_copy"),
            *_dotted("exp_manager", "log_local_rank_0_only", "log_global_rank_0_only"),
            *_dotted("s3_checkpointing", "max_write_concurrency", "max_read_concurrency", "chunk_size_MB"),
            "s3_checkpointing.enable_async_checkpointing",
        ),
    ),
    Refused(f"{_CHECKPOINTS}.train_time_interval", "Megatron-LM saves by steps: set every_n_train_steps", unless=()),
    Refused(f"{_CHECKPOINTS}.save_weights_only", "a run could not resume from it"),
    Refused("exp_manager.resume_from_checkpoint", "NeMo's checkpoints of optimizers cannot be read", unless=()),
    Translated(
        "exp_manager.create_tensorboard_logger",
        _tensorboard,
        ("tensorboard-dir",),
        default=True,
        source="ExpManagerConfig",
    ),
    Translated(
        "exp_manager.create_wandb_logger", _wandb, ("wandb-project", "wandb-exp-name", "wandb-save-dir", "wandb-entity")
    ),
    *(
        within(f"{_WANDB}.{key}", "exp_manager.create_wandb_logger")
        for key in ("project", "name", "entity", "save_dir")
    ),
    Refused("exp_manager.create_early_stopping_callback", "Megatron-LM trains to the end"),
    Refused("exp_manager.ema.enable", "Megatron-LM keeps no moving average of the weights"),
    *ignored("only with exp_manager.ema.enable", _dotted("exp_manager.ema", "decay", "cpu_offload", "every_n_steps")),
    Ignored("exp_manager.ema.validate_original_weights", "only with exp_manager.ema.enable"),
    Ignored("exp_manager.early_stopping_callback_params.*", "only with exp_manager.create_early_stopping_callback"),
    *ignored(
        "how NeMo logs and watches the run, not what it trains",
        (
            *_dotted(_WANDB, "id", "group", "tags", "notes", "job_type", "mode", "resume", "version", "offline", "dir"),
            *_dotted(_WANDB, "log_model", "anonymous", "prefix", "checkpoint_name", "config"),
            *(f"exp_manager.create_{logger}_logger" for logger in ("neptune", "mlflow", "dllogger", "clearml")),
            *(f"exp_manager.{logger}_logger_kwargs.*" for logger in ("neptune", "mlflow", "dllogger", "clearml")),
            *_dotted("exp_manager", "log_step_timing", "log_tflops_per_sec_per_gpu", "summary_writer_kwargs.*"),
            *_dotted("exp_manager.step_timing_kwargs", "reduction", "sync_cuda", "buffer_size"),
            *_dotted("exp_manager", "create_preemption_callback", "disable_validation_on_resume", "seconds_to_sleep"),
            *_dotted("exp_manager", "create_straggler_detection_callback", "straggler_detection_params.*"),
            *_dotted("exp_manager", "create_fault_tolerance_callback", "fault_tolerance.*"),
        ),
    ),
    Translated("exp_manager.max_time_per_run", _minutes, ("exit-duration-in-mins",)),
    Translated("restore_from_path", weights, ("pretrained-checkpoint",), note="a Megatron-LM checkpoint"),
    *ignored("for NeMo's launcher", ("name", "cluster_type", "base_results_dir", "data_dir")),
    *ignored("for NeMo's launcher", _dotted("run", "name", "results_dir", "time_limit", "dependency")),
    Ignored("env_vars.*", "NeMo's launcher sets these variables of the environment: export them before torchrun"),
)
