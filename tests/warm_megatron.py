"""The launcher of Megatron-LM, to be imported by a `WarmProcess`: Megatron and CPU mode are ready in its forks."""

from nca_plugin.launch.megatron import main
from nca_plugin.megatron import cpu_mode

cpu_mode.prepare()

from megatron.core.tokenizers import text  # noqa: E402
from megatron.training import arguments, global_vars  # noqa: E402

from nca_plugin.megatron import assertions, lineage, loaded, pretraining, unvalidated  # noqa: E402
from nca_plugin.sources import parse  # noqa: E402

# Compile, or load, what makes samples.
parse("nca://toy").sample(0, 96)

__all__ = [
    "arguments",
    "assertions",
    "global_vars",
    "lineage",
    "loaded",
    "main",
    "pretraining",
    "text",
    "unvalidated",
]
