"""The versions that nca-plugin needs and was tested with. setup.cfg repeats the lower bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

PYTHON: Final = ">=3.12"

#: The packages that every command needs, by name on the package index: install_requires of setup.cfg.
REQUIRED: Final[Mapping[str, str]] = {
    "numpy": ">=1.26",
    "numba": ">=0.59",
    "hydra-core": ">=1.3",
    "omegaconf": ">=2.3",
    "typer": ">=0.15.4",
    "rich": ">=13.0",
    "xxhash": ">=3.4",
    "safetensors": ">=0.4.3",
    "PyYAML": ">=6.0",
    "fsspec": ">=2023.10",
}

#: The packages of the extras in setup.cfg. A training environment has its own torch and megatron-core: the extra
#: `megatron` is for other machines.
EXTRAS: Final[Mapping[str, Mapping[str, str]]] = {
    "megatron": {"torch": ">=2.10", "megatron-core": ">=0.18", "tensorboard": ">=2.16", "psutil": ">=5.9"},
    "text": {"transformers": ">=4.57.1", "datasets": ">=3.0"},
    "study": {"matplotlib": ">=3.8", "scipy": ">=1.11", "jinja2": ">=3.1"},
}
TORCH: Final = EXTRAS["megatron"]["torch"]
MEGATRON_CORE: Final = EXTRAS["megatron"]["megatron-core"]
#: The newest releases that the tests ran with.
TESTED_UP_TO: Final[Mapping[str, str]] = {"torch": "2.15", "megatron-core": "0.19"}

BRIDGE: Final = "==0.6.2"
PYTHON_OF_BRIDGE: Final = "==3.12.*"
NEMO: Final = "==2.7.*"
#: With newer releases, NeMo cannot build its optimizer.
MEGATRON_CORE_OF_NEMO: Final = "==0.15.*"
#: With older releases, megatron-core 0.18 and 0.19 cannot be imported.
RESILIENCY: Final = ">=0.6"


def is_within(version: str, ranges: str) -> bool:
    """Whether a version lies in ranges such as `>=0.18,<0.20` or `==3.12.*`.

    Suffixes are ignored, because those of NVIDIA's builds name a commit of the release branch.

    >>> is_within("2.13.0a0+9186a08b2c.nv26.07", ">=2.13"), is_within("0.20.0rc1", ">=0.18,<0.20")
    (True, False)
    """
    numbers = _numbers(version)
    for condition in filter(None, ranges.split(",")):
        bound = _numbers(condition.lstrip("<>="))
        if condition.startswith("=="):
            is_right = numbers[: len(bound)] == bound
        else:
            # Both are padded to the same length, so that 2.0 equals 2.
            size = max(len(numbers), len(bound))
            padded, limit = (each + (size - len(each)) * (0,) for each in (numbers, bound))
            is_right = padded >= limit if condition.startswith(">=") else padded < limit
        if not is_right:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
