"""Tests use CPU mode wherever they run; those of `make test-gpu` ask for the machine's CUDA devices."""

import os

_NAME = "CUDA_VISIBLE_DEVICES"
_VISIBLE = os.environ.get(_NAME)


def hide() -> None:
    """Let this process and those that it starts see no CUDA device."""
    os.environ[_NAME] = ""


def with_devices() -> dict[str, str]:
    """Return the environment for a process that shall see the devices that this one was started with."""
    environment = {name: value for name, value in os.environ.items() if name != _NAME}
    return environment if _VISIBLE is None else {**environment, _NAME: _VISIBLE}
