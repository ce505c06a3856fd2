"""NCA sources inside Megatron's own pretraining.

A training script of your own passes `provider` instead of its dataset provider:

    from nca_plugin.megatron import provider
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)

and names its data with `--data-path nca://web`, or a blend, `--data-path 0.1 nca://web 0.9 my_text_document`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Importing this package must not import Megatron, because CPU mode must be enabled first.
    if name == "provider":
        from nca_plugin.megatron.dataset_provider import provider

        return provider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
