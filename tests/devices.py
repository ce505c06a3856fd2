"""Tests use CPU mode wherever they run; those of `make test-gpu` ask for the machine's CUDA devices."""

import os

_NAME = "CUDA_VISIBLE_DEVICES"
#: The value that the tests were started with, for the processes that they start: pytest-xdist's workers are such.
_KEPT = "NCA_PLUGIN_TESTS_CUDA_VISIBLE_DEVICES"
_ALL = "all"


def hide() -> None:
    """Let this process and those that it starts see no CUDA device."""
    os.environ.setdefault(_KEPT, os.environ.get(_NAME, _ALL))
    os.environ[_NAME] = ""


def with_devices() -> dict[str, str]:
    """Return the environment for a process that shall see the devices that the tests were started with."""
    environment = {name: value for name, value in os.environ.items() if name != _NAME}
    kept = os.environ.get(_KEPT, _ALL)
    return environment if kept == _ALL else {**environment, _NAME: kept}
