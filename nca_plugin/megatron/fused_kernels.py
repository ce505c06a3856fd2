"""Kernels of Transformer Engine and of NVIDIA's Apex: the arguments that a run on CUDA needs where they are missing.

By default Megatron uses both packages, and a run without them would end in one traceback after the other. The
conditions are those of megatron-core 0.19.2. Importing this takes the standard library only: `nca-plugin doctor` does.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from nca_plugin.errors import NCAPluginError

#: Adds every argument that a run needs.
OPTION: Final = "--local-kernels"
#: The same in a Hydra configuration.
HYDRA_OVERRIDE: Final = "+kernels=local"

#: Apex is built with or without each of its extensions.
GRADIENT_EXTENSION: Final = "fused_weight_gradient_mlp_cuda"
SOFTMAX_EXTENSION: Final = "scaled_masked_softmax_cuda"

#: What of Megatron-LM's arguments decides, with the values that it has in a run that names none of them.
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
    """What Megatron finds of both packages."""

    has_transformer_engine: bool = True

    has_apex: bool = True
    """NVIDIA's, for its layer norm."""

    has_gradient_extension: bool = True
    """Apex's, which adds the gradient of a weight to the sum over micro-batches."""

    has_softmax_extension: bool = True
    """Apex's, which scales and masks scores of attention."""


_ALL: Final = Kernels()


def installed() -> Kernels:
    """Return what there is, by the imports that Megatron decides by. The process has to be prepared for Megatron."""
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
        args: Megatron-LM's, parsed; validated or not.
    """
    is_local = args.transformer_impl == "local" or not kernels.has_transformer_engine
    # Apex has a layer norm only.
    has_torch_norms = is_local and (not kernels.has_apex or args.normalization == "RMSNorm")
    # A checkpoint's arguments are not known before they are loaded.
    may_have_rope = (
        args.position_embedding_type == "rope" or args.use_rotary_position_embeddings or args.use_checkpoint_args
    )
    has_fused_rope = args.apply_rope_fusion and may_have_rope
    # Other sequences than the run's, such as an evaluation's, have it too: its length makes no difference.
    has_fused_softmax = is_local and args.masked_softmax_fusion and (args.bf16 or args.fp16)
    is_lacking = {
        "--transformer-impl local": args.transformer_impl != "local" and not kernels.has_transformer_engine,
        "--no-persist-layer-norm": has_torch_norms and not args.no_persist_layer_norm,
        # Whatever layers are made of, the output layer is Megatron's own.
        "--no-gradient-accumulation-fusion": args.gradient_accumulation_fusion and not kernels.has_gradient_extension,
        "--no-rope-fusion": has_fused_rope and not kernels.has_transformer_engine,
        "--no-masked-softmax-fusion": has_fused_softmax and not kernels.has_softmax_extension,
    }
    return [argument for argument, is_needed in is_lacking.items() if is_needed]


def check_kernels(args: Namespace, kernels: Kernels) -> None:
    """Refuse what the kernels at hand cannot do: Megatron would leave it out in silence, or end as it builds the model.

    Args:
        args: Megatron-LM's, parsed.

    Raises:
        NCAPluginError: the run asks for something that only Transformer Engine has.
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
        # Apex has a layer norm only.
        "--normalization RMSNorm beside Apex": args.normalization == "RMSNorm" and kernels.has_apex,
    }
    if asked := [option for option, is_there in is_asked.items() if is_there]:
        raise NCAPluginError(
            f"without Transformer Engine, a run on CUDA cannot have {', '.join(asked)}: change the run, or install "
            "Transformer Engine"
        )


def has_spec_of_megatron(args: Namespace) -> bool:
    """Whether a run's layers are made as Megatron, rather than a module of the user's, says."""
    return args.spec is None or args.spec[0].startswith("megatron.")


def added_arguments(args: Namespace, kernels: Kernels) -> list[str]:
    """Return what `--local-kernels` adds to a run's arguments; nothing if it lacks nothing.

    Raises:
        NCAPluginError: the run lacks some, and does not have the option.
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
    """Return the packages of which something is missing."""
    packages = [] if kernels.has_transformer_engine else ["Transformer Engine"]
    if not kernels.has_apex:
        packages.append("NVIDIA's Apex")
    elif not (kernels.has_gradient_extension and kernels.has_softmax_extension):
        packages.append("some CUDA extensions of Apex")
    return " and ".join(packages)


def described_needs(kernels: Kernels, others: Kernels = _ALL) -> str:
    """Return what runs need that name none of the arguments, and which runs need some of them only.

    Args:
        others: what runs would need with these is left out.
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
