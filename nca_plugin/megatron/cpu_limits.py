"""Checks whether CPU mode can do a run: its memory, and arguments that need a GPU or Transformer Engine."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.option_names import OptionNames
from nca_plugin.this_rank import print_rank_0

#: Lower bound: a weight in fp32, or in bf16 with a copy in fp32. Gradients and Adam's moments may be sharded.
_BYTES_PER_WEIGHT: Final = 4
#: Arguments that change the numbers that a run computes, or with which it cannot run.
_NEEDS_GPU: Final = (
    *("fp8", "fp8_param_gather", "fp4", "fp4_param_gather", "te_precision_config_file", "kitchen_config_file"),
    *("use_kitchen_attention", "use_precision_aware_optimizer", "optimizer_cpu_offload", "use_torch_fsdp2"),
    *("use_megatron_fsdp", "moe_grouped_gemm", "moe_enable_deepep", "qk_clip", "log_max_attention_logit"),
    *("te_rng_tracker", "use_te_activation_func", "use_transformer_engine_op_fuser", "fused_residual_rmsnorm"),
    *("tp_comm_overlap", "nccl_ub", "use_sharp", "symmetric_ar_type", "cpu_offloading_num_layers"),
    *("fine_grained_activation_offloading", "delay_wgrad_compute", "enable_cuda_graph", "external_cuda_graph"),
    *("moe_permute_fusion", "moe_router_fusion", "mla_down_proj_fusion", "use_fused_weighted_squared_relu"),
    *("batch_invariant_mode", "profile", "record_memory_history", "gpu_sniff_test_interval", "log_straggler"),
    *("use_grouped_gemm_for_dense_mlp", "use_grouped_gemm_for_shared_expert", "optimizer_cuda_graph"),
    *("moe_shared_expert_overlap", "inprocess_restart", "use_ring_exchange_p2p", "log_device_memory_used"),
    *("save_activations_interval", "save_dgrads_interval", "save_tokens_per_expert_interval"),
    *("tensor_parallel_num_weight_shards", "expert_tensor_parallel_num_weight_shards"),
)
#: Arguments that choose kernels or streams of a GPU. Without them the results are the same up to rounding.
_NO_EFFECT: Final = (
    *("use_flash_attn", "attention_backend", "high_priority_stream_groups", "nccl_communicator_config_path"),
    *("high_priority_a2a_comm_stream", "flash_attention_version", "nvtx_ranges", "pin_cpu_grads", "pin_cpu_params"),
)
_VALUES_NEED_GPU: Final = {
    "cuda_graph_impl": ("local", "transformer_engine", "full_iteration"),
    "cross_entropy_fusion_impl": ("te",),
    "moe_token_dispatcher_type": ("flex",),
    "transformer_impl": ("inference_optimized",),
}


#: The mount points of cgroups of version 2 and 1, with the names of the files of the limit and of the used memory.
_CGROUPS: Final = (
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/unified", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: Matches used memory that the kernel gives back if it is needed: pages of files, and caches of file names.
_FILE_PAGES: Final = re.compile(r"^(?:total_)?(?:(?:in)?active_file|slab_reclaimable) (\d+)$", re.M)


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process can still use, on the machine and within its cgroups.

    A container or a job of Slurm or Kubernetes is a cgroup, whose processes are killed at its limit.

    Args:
        root: the root of the file system.
    """
    machine = re.search(r"^MemAvailable: +(\d+) kB$", _text(root / "proc/meminfo"), re.M)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([int(machine[1]) * 1024 if machine else total, *_left_in_cgroups(root)])


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield the bytes that are left below each cgroup limit for this process."""
    # A line is `hierarchy:controllers:path`.
    lines = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2]
    paths = {path.strip("/") for _, controllers, path in lines if controllers in ("", "memory")}
    for mount, limit, used in _CGROUPS:
        for path in sorted(paths):
            own = root / mount / path
            # The limits of parent groups count too. In a container the path may be the host's, although the container
            # sees only its own group, as the root.
            for folder in (own, *own.parents):
                values = [_text(folder / name).strip() for name in (limit, used)]
                if all(map(str.isdecimal, values)):
                    pages = sum(map(int, _FILE_PAGES.findall(_of_hierarchy(_text(folder / "memory.stat")))))
                    yield max(int(values[0]) - max(int(values[1]) - pages, 0), 0)
                if folder == root / mount:
                    break


def _of_hierarchy(stat: str) -> str:
    """Return the lines of `memory.stat` that include child groups. In version 1 these begin with `total_`."""
    totals = [line for line in stat.splitlines() if line.startswith("total_")]
    return "\n".join(totals) if totals else stat


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check_memory(args: Namespace, root: Path = Path("/")) -> None:
    """Raise `NCAPluginError` if a lower bound of a run's memory exceeds the available memory.

    Args:
        args: Megatron-LM's validated arguments.
        root: see `available_memory`.
    """
    layers = args.num_layers / args.pipeline_model_parallel_size
    tokens = args.micro_batch_size * args.seq_length / args.context_parallel_size
    hidden, ranks = args.hidden_size, args.tensor_model_parallel_size
    embedding = (args.padded_vocab_size or 0) * hidden
    mlp = 2 * hidden * args.ffn_hidden_size / ranks
    if args.num_experts:
        # Some layers may have no experts, so that the smaller kind of MLP counts.
        experts = 2 * hidden * args.moe_ffn_hidden_size * args.num_experts
        experts /= args.expert_model_parallel_size * args.expert_tensor_parallel_size
        mlp = experts if args.moe_layer_freq == 1 else min(experts, mlp)
    # The low-rank projections of multi-latent attention are not counted.
    attention = 0 if args.multi_latent_attention else 2 * hidden * args.kv_channels * args.num_attention_heads / ranks
    # The activations counted are the input of each layer and the attention scores of one layer.
    weights = _BYTES_PER_WEIGHT * (embedding / ranks + layers * (mlp + attention))
    activations = 2 * tokens * (layers * hidden + args.num_attention_heads * args.seq_length) / ranks
    available = available_memory(root)
    if weights + activations > available:
        names = ("num_layers", "hidden_size", "ffn_hidden_size", "seq_length", "micro_batch_size")
        shown = ", ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names)
        raise NCAPluginError(
            f"CPU mode needs {(weights + activations) / 1e9:,.0f} GB or more on each rank for {shown} and "
            f"{args.padded_vocab_size} embedding rows, and this process may use {available / 1e9:,.0f} GB (what the "
            "machine has left, or its container or job allows): make the model or the batch smaller"
        )


def _is_given(args: Namespace, name: str, options: OptionNames) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False and value != options.actions[name].default


def check_cpu_mode(args: Namespace, options: OptionNames) -> None:
    """Raise `NCAPluginError` with all arguments that need a GPU, and print those that have no effect.

    Args:
        args: Megatron-LM's parsed arguments, including `CPU_ARGUMENTS`.
    """
    given = [n for n in _NEEDS_GPU if n in options.actions and _is_given(args, n, options)]
    given += [n for n, values in _VALUES_NEED_GPU.items() if n in options.actions and getattr(args, n) in values]
    if given:
        shown = ", ".join(options.shown(name, getattr(args, name)) for name in given)
        raise NCAPluginError(f"CPU mode cannot do {shown}: leave it out, or run on a GPU")
    ignored = [n for n in _NO_EFFECT if n in options.actions and getattr(args, n) != options.actions[n].default]
    if ignored:
        shown = ", ".join(options.shown(name, getattr(args, name)) for name in ignored)
        print_rank_0(f"nca-plugin: in CPU mode these have no effect: {shown}")
