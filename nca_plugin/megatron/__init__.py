"""NCA sources inside Megatron's own pretraining.

For a training script of your own, `provider` takes the place of its dataset provider:

    from nca_plugin.megatron import provider
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)

and `--data-path nca://web` (or a blend, `--data-path 0.1 nca://web 0.9 my_text_document`) does the rest.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Importing this package must not import Megatron: CPU mode, a module of it, comes first.
    if name == "provider":
        from nca_plugin.megatron.dataset_provider import provider

        return provider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
