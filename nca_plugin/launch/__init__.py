"""The entry points that torchrun starts, by the module names for `python -m`, and what their ranks share."""

from typing import Final

MEGATRON: Final = f"{__name__}.megatron"
HYDRA: Final = f"{__name__}.hydra"
BRIDGE: Final = f"{__name__}.bridge"
EVALUATE: Final = f"{__name__}.evaluate"
CHECK: Final = f"{__name__}.check"
