"""Starts Megatron's `pretrain` as Megatron-LM's pretrain_gpt.py does.

Its signature depends on the release. From 0.19 on it builds the model from a configuration. 0.18 takes a model
provider, which is in a file of Megatron-LM, but not in the megatron-core wheel.
"""

import contextlib
import inspect
import io
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.multi_token_prediction import get_mtp_ranks
from megatron.training import argument_utils
from megatron.training import pretrain as megatron_pretrain
from megatron.training.argument_utils import core_transformer_config_from_args, pretrain_cfg_container_from_args

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.dataset import is_ours
from nca_plugin.megatron.dataset_provider import provider, training_paths
from nca_plugin.megatron.log import announcing, reporting
from nca_plugin.megatron.metrics import SampleMeter
from nca_plugin.megatron.step import forward_step

#: Is called with the model's parts on this rank before they are wrapped for data parallelism, and returns them.
PreWrapHook = Callable[[Sequence[torch.nn.Module]], Sequence[torch.nn.Module]]


def pretrain(args: Namespace, hooks: Sequence[PreWrapHook] = ()) -> None:
    """Train the GPT or hybrid model of Megatron's arguments on their data, which `provider` builds.

    Raises:
        NCAPluginError: if this release of Megatron lacks something that the run needs.
    """
    model: dict[str, Any] = {}
    config = _model_config(args)
    if needs_model_provider(megatron_pretrain):
        if hooks:
            raise NCAPluginError("--freeze-list needs megatron-core 0.19")
        model["model_provider"] = model_provider_of_megatron_lm(args)
    else:
        config.pre_wrap_hooks.extend(hooks)
    meter = SampleMeter(args.num_workers)
    lines: list[str] = []
    metered_provider = partial(provider, meter=meter, announce=lines.append)
    metered_provider.is_distributed = provider.is_distributed  # type: ignore[attr-defined]
    paths = training_paths(args)
    step = reporting(forward_step, meter) if any(map(is_ours, paths)) else forward_step
    megatron_pretrain(
        pretrain_cfg_container_from_args(args, config),
        metered_provider,
        model_type=ModelType.encoder_or_decoder,
        # Without data paths there is nothing to announce.
        forward_step_func=announcing(step, lines) if paths else step,
        get_embedding_ranks=partial(embedding_ranks, args),
        **model,
    )


def needs_model_provider(function: Callable[..., Any]) -> bool:
    """Return whether `pretrain` is that of megatron-core 0.18, which needs a model provider, rather than of 0.19.

    Raises:
        NCAPluginError: if it is older than both.
    """
    parameters = inspect.signature(function).parameters
    if "cfg_container" not in parameters:
        raise NCAPluginError("this megatron-core's pretrain() is older than 0.18: install megatron-core 0.19")
    return "model_provider" in parameters and parameters["model_provider"].default is inspect.Parameter.empty


def model_provider_of_megatron_lm(args: Namespace) -> Callable[..., Any]:
    """Return the model provider for megatron-core 0.18.

    Raises:
        NCAPluginError: if Megatron-LM's files are not on the path.
    """
    builder = "gpt_builder" if args.hybrid_layer_pattern is None else "hybrid_builder"
    try:
        model_provider = import_module("model_provider").model_provider
        return partial(model_provider, getattr(import_module(f"{builder}s"), builder))
    except ImportError as error:
        raise NCAPluginError(
            f"megatron-core 0.18 leaves building the model to Megatron-LM's {builder}s.py ({error}): start in a "
            "checkout of Megatron-LM core_v0.18.2, or install megatron-core 0.19"
        ) from error


def embedding_ranks(args: Namespace, pipeline: list[int]) -> list[int]:
    """Return the ranks of a pipeline that hold copies of the word embeddings, whose gradients Megatron sums.

    They are on the first stage, on the last stage if the output layer is tied to the embeddings, and on the stages with
    multi-token prediction, which a pipeline layout may put anywhere.
    """
    ranks = {pipeline[0], *get_mtp_ranks(pipeline, core_transformer_config_from_args(args))}
    if not args.untie_embeddings_and_output_weights:
        ranks.add(pipeline[-1])
    return sorted(ranks)


def check_configurations(args: Namespace) -> None:
    """Make the configurations of `pretrain`, which check themselves, and throw them away.

    Megatron's output is dropped, because `pretrain` will print the same again.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain_cfg_container_from_args(args, _model_config(args))


def _model_config(args: Namespace) -> Any:
    """Return Megatron's configuration of the model; None if 0.18 leaves the model to Megatron-LM's files."""
    if args.hybrid_layer_pattern is not None:
        return argument_utils.hybrid_config_from_args(args)
    return None if needs_model_provider(megatron_pretrain) else argument_utils.gpt_config_from_args(args)
