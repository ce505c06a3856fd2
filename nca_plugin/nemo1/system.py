"""`model` of a NeMo 1 configuration: batches, parallelism, precision, memory, kernels and checkpoints."""

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
    ignored,
    integer,
    name,
    off_switch,
    switch,
    text,
    whole,
    within,
)
from nca_plugin.nemo1.run import precision, weights

_BUILDER: Final = "MegatronGPTModel.model_provider_func"
_CONFIG: Final = "build_transformer_config"


def _keys(*names: str) -> tuple[str, ...]:
    return tuple(f"model.{name}" for name in names)


def _virtual_stages(value: Any, config: Config) -> Arguments:
    return {"num-virtual-stages-per-pipeline-rank": whole(value)} if whole(value) > 1 else {}


def _sequence_parallel(value: Any, config: Config) -> Arguments:
    """NeMo turns it off without tensor parallelism."""
    return {"sequence-parallel": True} if boolean(value) and _has_tensor_parallelism(config) else {}


def _has_tensor_parallelism(config: Config) -> bool:
    return (config.get("model.tensor_model_parallel_size", whole) or 1) > 1


def _tp_overlap(value: Any, config: Config) -> Arguments:
    """NeMo turns it off without sequence parallelism."""
    is_on = boolean(value) and config.get("model.sequence_parallel", boolean) and _has_tensor_parallelism(config)
    return {"tp-comm-overlap": True} if is_on else {}


def _recompute(value: Any, config: Config) -> Arguments:
    match value:
        case "selective":
            # With a method and a number of layers, NeMo chooses among the layers: less memory or more, same numbers.
            return {"recompute-granularity": "selective"}
        case "full":
            method = config.get("model.activations_checkpoint_method", name)
            layers = config.get("model.activations_checkpoint_num_layers", whole)
            return {
                "recompute-granularity": "full",
                "recompute-method": "uniform" if method is None else method,
                "recompute-num-layers": 1 if layers is None else layers,
            }
    raise CannotBeHad("must be selective or full")


def _fp8(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    is_e4m3, is_hybrid, has_wgrad, has_params, reduces = (
        config.get(f"model.{key}", boolean)
        for key in ("fp8_e4m3", "fp8_hybrid", "fp8_wgrad", "fp8_params", "reduce_amax")
    )
    if not (is_e4m3 or is_hybrid):
        raise CannotBeHad("needs model.fp8_e4m3 or model.fp8_hybrid")
    if not reduces:
        raise CannotBeHad("with model.reduce_amax=false: Megatron-LM always reduces them")
    return (
        {
            "fp8-format": "e4m3" if is_e4m3 else "hybrid",
            "fp8-margin": config.read("model.fp8_margin", whole),
            "fp8-interval": config.read("model.fp8_interval", whole),
            "fp8-amax-history-len": config.read("model.fp8_amax_history_len", whole),
            "fp8-amax-compute-algo": config.read("model.fp8_amax_compute_algo", name),
        }
        | ({} if has_wgrad else {"no-fp8-wgrad": True})
        | ({"fp8-param-gather": True} if has_params else {})
    )


def _same_precision(value: Any, config: Config) -> Arguments:
    if precision(value) != config.read("trainer.precision", precision):
        raise CannotBeHad(f"trainer.precision is {config['trainer.precision']}")
    return {}


def _garbage(value: Any, config: Config) -> Arguments:
    return {"manual-gc": True, "manual-gc-interval": whole(value)} if whole(value) else {}


ROWS: Final[tuple[Row, ...]] = (
    integer("model.micro_batch_size", "micro-batch-size", is_required=True),
    integer("model.global_batch_size", "global-batch-size", is_required=True),
    Refused(
        "model.rampup_batch_size",
        "Megatron-LM 0.19 ignores its own: arguments.step-batch-size-schedule, with arguments.train-samples, does it",
        unless=(),
    ),
    integer("model.tensor_model_parallel_size", "tensor-model-parallel-size"),
    integer("model.pipeline_model_parallel_size", "pipeline-model-parallel-size"),
    Translated(
        "model.virtual_pipeline_model_parallel_size", _virtual_stages, ("num-virtual-stages-per-pipeline-rank",)
    ),
    integer("model.context_parallel_size", "context-parallel-size"),
    integer("model.expert_model_parallel_size", "expert-model-parallel-size"),
    Translated("model.sequence_parallel", _sequence_parallel, ("sequence-parallel",)),
    Translated("model.ub_tp_comm_overlap", _tp_overlap, ("tp-comm-overlap",)),
    switch("model.use_tp_pp_dp_mapping", "use-tp-pp-dp-mapping"),
    Translated("model.precision", _same_precision, (), note="must be trainer.precision"),
    integer("model.native_amp_init_scale", "initial-loss-scale"),
    integer("model.native_amp_growth_interval", "loss-scale-window"),
    integer("model.hysteresis", "hysteresis"),
    switch("model.fp32_residual_connection", "fp32-residual-connection"),
    switch("model.fp16_lm_cross_entropy", "fp16-lm-cross-entropy"),
    switch("model.cross_entropy_loss_fusion", "cross-entropy-loss-fusion"),
    Translated(
        "model.transformer_engine",
        lambda value, _: {"transformer-impl": "transformer_engine" if boolean(value) else "local"},
        ("transformer-impl",),
        default=False,
        source=_BUILDER,
    ),
    Translated(
        "model.fp8",
        _fp8,
        (
            *("fp8-format", "fp8-margin", "fp8-interval", "fp8-amax-history-len", "fp8-amax-compute-algo"),
            *("no-fp8-wgrad", "fp8-param-gather"),
        ),
    ),
    *(
        within(f"model.{key}", "model.fp8", default=default)
        for key, default in {
            **{"fp8_e4m3": False, "fp8_hybrid": False, "fp8_wgrad": True, "fp8_params": False, "reduce_amax": True},
            **{"fp8_margin": 0, "fp8_interval": 1, "fp8_amax_history_len": 1, "fp8_amax_compute_algo": "most_recent"},
        }.items()
    ),
    off_switch("model.masked_softmax_fusion", "no-masked-softmax-fusion"),
    off_switch("model.bias_dropout_add_fusion", "no-bias-dropout-fusion"),
    off_switch("model.apply_rope_fusion", "no-rope-fusion"),
    off_switch("model.persist_layer_norm", "no-persist-layer-norm", default=False, source=_CONFIG),
    off_switch("model.gradient_accumulation_fusion", "no-gradient-accumulation-fusion", default=False, source=_CONFIG),
    Translated(
        "model.activations_checkpoint_granularity",
        _recompute,
        ("recompute-granularity", "recompute-method", "recompute-num-layers"),
    ),
    within("model.activations_checkpoint_method", "model.activations_checkpoint_granularity"),
    within("model.activations_checkpoint_num_layers", "model.activations_checkpoint_granularity"),
    integer("model.seed", "seed"),
    switch("model.use_cpu_initialization", "use-cpu-initialization"),
    Translated("model.gc_interval", _garbage, ("manual-gc", "manual-gc-interval")),
    switch("model.sharp", "use-sharp"),
    text("model.nccl_communicator_config_path", "nccl-communicator-config-path"),
    Translated("model.restore_from_path", weights, ("pretrained-checkpoint",), note="a Megatron-LM checkpoint"),
    Refused("model.restore_from_ckpt", "NeMo's checkpoints of optimizers cannot be read", unless=()),
    Refused("model.resume_from_checkpoint", "NeMo's checkpoints of optimizers cannot be read", unless=()),
    Refused("model.reset_lr", "start from model.restore_from_path instead, whose schedule begins anew"),
    Refused("model.reset_lr_steps", "start from model.restore_from_path instead, whose schedule begins anew"),
    Refused("model.fsdp", "Megatron-LM shards with model.optim.name=distributed_fused_adam"),
    switch("model.skip_train", "skip-train"),
    switch("model.deterministic_mode", "deterministic-mode"),
    # As files of NeMo's launcher spell it, which NeMo does not read.
    Refused("model.deteministic_mode", "NeMo does not read it: write model.deterministic_mode"),
    Refused("model.enable_cuda_graph", "NeMo 1's graphs have no counterpart"),
    Ignored(
        "model.megatron_amp_O2",
        "Megatron-LM always trains as with O2: half-precision weights, float32 main weights in the optimizer",
    ),
    *ignored(
        "only with model.fsdp",
        _keys(
            *("fsdp_sharding_strategy", "fsdp_grad_reduce_dtype", "fsdp_sharded_checkpoint", "fsdp_cpu_offload"),
            *("fsdp_limit_all_gathers", "fsdp_use_orig_params"),
        ),
    ),
    *ignored(
        "memory, not numbers: see --recompute-granularity and --cpu-offloading-num-layers",
        _keys(
            *("num_micro_batches_with_partial_activation_checkpoints", "activations_checkpoint_layers_per_pipeline"),
            *("cpu_offloading", "cpu_offloading_num_layers", "cpu_offloading_activations", "cpu_offloading_weights"),
        ),
    ),
    *ignored(
        "speed, not numbers: Megatron-LM has its own",
        _keys(
            *("grad_allreduce_chunk_size_mb", "grad_div_ar_fusion", "gradient_as_bucket_view", "async_grad_allreduce"),
            *("overlap_p2p_comm", "batch_p2p_comm", "sync_batch_comm", "validation_param_sync_overlap"),
            *("defer_embedding_wgrad_compute", "wgrad_deferral_limit", "with_fp32_embedding_grads"),
            "distributed_adam_bucket_merge_size",
            *("use_flash_attention", "get_attention_mask_from_fusion", "use_te_rng_tracker", "onnx_safe"),
            *("tp_comm_atomic_ag", "tp_comm_atomic_rs", "tp_comm_split_ag", "tp_comm_split_rs"),
            *("tp_comm_overlap_ag", "tp_comm_overlap_rs", "tp_comm_bulk_wgrad", "tp_comm_bulk_dgrad"),
            *("ub_tp_comm_overlap_cfg", "ub_tp_comm_overlap_cfg.*"),
        ),
    ),
    *ignored(
        "checkpoints are Megatron-LM's own",
        _keys(
            *("dist_ckpt_format", "dist_ckpt_load_on_device", "dist_ckpt_parallel_save", "dist_ckpt_parallel_load"),
            *("dist_ckpt_parallel_save_within_dp", "dist_ckpt_torch_dist_multiproc", "dist_ckpt_parallel_dist_opt"),
            *("dist_ckpt_assume_constant_structure", "dist_ckpt_load_strictness"),
        ),
    ),
    *ignored(
        "how NeMo logs, profiles and builds the run, not what it trains",
        _keys(
            *("pre_process", "post_process", "apex_transformer_log_level", "enable_megatron_timers"),
            *("target", "nemo_version"),
            *(f"megatron_timer_kwargs.{key}" for key in ("log_every_n_steps", "log_mode", "log_option", "barrier")),
            *(f"nsys_profile.{key}" for key in ("enabled", "start_step", "end_step", "ranks", "gen_shape", "trace")),
            *(f"memory_profile.{key}" for key in ("enabled", "start_step", "end_step", "rank", "output_path")),
        ),
    ),
)
