"""Finds the arguments that a run on CUDA needs without the kernels of Transformer Engine or of NVIDIA's Apex.

By default Megatron uses both packages, and without them a run would fail again and again, each time for another kernel.
The conditions are those of megatron-core 0.19.2. Importing this module needs only the standard library, because
`nca-plugin doctor` imports it.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from nca_plugin.errors import NCAPluginError

#: The option that adds all arguments that a run needs.
OPTION: Final = "--local-kernels"
#: The override that does the same in a Hydra configuration.
HYDRA_OVERRIDE: Final = "+kernels=local"

#: Extensions of Apex, each of which may be left out when it is built.
GRADIENT_EXTENSION: Final = "fused_weight_gradient_mlp_cuda"
SOFTMAX_EXTENSION: Final = "scaled_masked_softmax_cuda"

#: The arguments of Megatron-LM that decide which kernels a run uses, with their defaults.
_DEFAULTS: Final = {
    "transformer_impl": "transformer_engine",
    "no_persist_layer_norm": False,
    "gradient_accumulation_fusion": True,
    "apply_rope_fusion": True,
    "masked_softmax_fusion": True,
    "normalization": "LayerNorm",
    "position_embedding_type": "learned_absolute",
    "use_rotary_position_embeddings": False,
    "bf16": False,
    "fp16": False,
    "use_checkpoint_args": False,
}


@dataclass(frozen=True)
class Kernels:
    """The packages and extensions that Megatron finds."""

    has_transformer_engine: bool = True

    has_apex: bool = True
    """Whether NVIDIA's Apex is installed, for its layer norm."""

    has_gradient_extension: bool = True
    """Whether Apex has the extension that adds the gradient of a weight to the sum over micro-batches."""

    has_softmax_extension: bool = True
    """Whether Apex has the extension that scales and masks attention scores."""


_ALL: Final = Kernels()


def installed() -> Kernels:
    """Return the installed kernels, found by the same imports as in Megatron. Call `device.prepare` first."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return Kernels(HAVE_TE, *map(_can_be_imported, ("apex", GRADIENT_EXTENSION, SOFTMAX_EXTENSION)))


def _can_be_imported(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def needed_arguments(args: Namespace, kernels: Kernels) -> list[str]:
    """Return the arguments that a run lacks, as a command line spells them.

    Args:
        args: Megatron-LM's parsed arguments, validated or not.
    """
    is_local = args.transformer_impl == "local" or not kernels.has_transformer_engine
    # Apex has a LayerNorm, but no RMSNorm.
    has_torch_norms = is_local and (not kernels.has_apex or args.normalization == "RMSNorm")
    # If the arguments come from a checkpoint, they are not known yet.
    may_have_rope = (
        args.position_embedding_type == "rope" or args.use_rotary_position_embeddings or args.use_checkpoint_args
    )
    has_fused_rope = args.apply_rope_fusion and may_have_rope
    # The sequence length is not considered, because an evaluation may have another one.
    has_fused_softmax = is_local and args.masked_softmax_fusion and (args.bf16 or args.fp16)
    is_lacking = {
        "--transformer-impl local": args.transformer_impl != "local" and not kernels.has_transformer_engine,
        "--no-persist-layer-norm": has_torch_norms and not args.no_persist_layer_norm,
        # Even with layers of Transformer Engine, the output layer is Megatron's own.
        "--no-gradient-accumulation-fusion": args.gradient_accumulation_fusion and not kernels.has_gradient_extension,
        "--no-rope-fusion": has_fused_rope and not kernels.has_transformer_engine,
        "--no-masked-softmax-fusion": has_fused_softmax and not kernels.has_softmax_extension,
    }
    return [argument for argument, is_needed in is_lacking.items() if is_needed]


def check_kernels(args: Namespace, kernels: Kernels) -> None:
    """Refuse options that the installed kernels cannot do, which Megatron would ignore or fail on late.

    Args:
        args: Megatron-LM's parsed arguments.

    Raises:
        NCAPluginError: if the run needs Transformer Engine and it is not installed.
    """
    if kernels.has_transformer_engine:
        return
    is_asked = {
        "--fp8-format": args.fp8,
        "--fp4-format": args.fp4,
        f"--context-parallel-size {args.context_parallel_size}": args.context_parallel_size > 1,
        "--multi-latent-attention": args.multi_latent_attention,
        "--use-precision-aware-optimizer": args.use_precision_aware_optimizer,
        f"--attention-backend {args.attention_backend.name}": args.attention_backend.name in ("flash", "fused"),
        "--hybrid-layer-pattern without a --spec of your own": (
            args.hybrid_layer_pattern is not None and has_spec_of_megatron(args)
        ),
        # Apex has a LayerNorm, but no RMSNorm.
        "--normalization RMSNorm beside Apex": args.normalization == "RMSNorm" and kernels.has_apex,
    }
    if asked := [option for option, is_there in is_asked.items() if is_there]:
        raise NCAPluginError(
            f"without Transformer Engine, a run on CUDA cannot have {', '.join(asked)}: change the run, or install "
            "Transformer Engine"
        )


def has_spec_of_megatron(args: Namespace) -> bool:
    """Return whether a run's layer spec is one of Megatron's, not of a user's module."""
    return args.spec is None or args.spec[0].startswith("megatron.")


def added_arguments(args: Namespace, kernels: Kernels) -> list[str]:
    """Return the arguments that `--local-kernels` adds to a run.

    Raises:
        NCAPluginError: if the run lacks arguments and does not have the option.
    """
    needed = needed_arguments(args, kernels)
    if needed and not args.local_kernels:
        what = "them all" if len(needed) > 1 else "it"
        raise NCAPluginError(
            f"without {_missing(kernels)}, a run on CUDA needs {' '.join(needed)}: add {OPTION} (with Hydra "
            f"{HYDRA_OVERRIDE}), which adds {what}"
        )
    return " ".join(needed).split()


def _missing(kernels: Kernels) -> str:
    """Return the packages that are missing, in whole or in part."""
    packages = [] if kernels.has_transformer_engine else ["Transformer Engine"]
    if not kernels.has_apex:
        packages.append("NVIDIA's Apex")
    elif not (kernels.has_gradient_extension and kernels.has_softmax_extension):
        packages.append("some CUDA extensions of Apex")
    return " and ".join(packages)


def described_needs(kernels: Kernels, others: Kernels = _ALL) -> str:
    """Return the arguments that every default run needs, and those that only some runs need, for people to read.

    Args:
        others: kernels whose needs are left out.
    """

    def needs(**arguments: str | bool) -> list[str]:
        run = Namespace(**{**_DEFAULTS, **arguments})
        left_out = needed_arguments(run, others)
        return [argument for argument in needed_arguments(run, kernels) if argument not in left_out]

    every = needs()
    some = {"with rope": needs(position_embedding_type="rope"), "in bf16 or fp16": needs(bf16=True)}
    parts = [" ".join(every)] if every else []
    for runs, needed in some.items():
        parts += [f"{runs} {argument}" for argument in needed if argument not in every]
    return ", ".join(parts)
