"""The CUDA devices of each run, for runs that a study does at the same time on this machine."""

import os
from collections.abc import Sequence

from nca_plugin.errors import NCAPluginError
from nca_plugin.study.design import StudyConfig


def device_groups(devices: Sequence[str], study: StudyConfig) -> list[Sequence[str] | None]:
    """Return the devices of each run that is done at the same time. The number of groups is the number of such runs.

    Args:
        devices: names of the machine's CUDA devices, as in CUDA_VISIBLE_DEVICES. If there are none, runs are done on
            the CPU, and their devices are None.

    Raises:
        NCAPluginError: one run needs more devices than there are.
    """
    count, size = len(devices), study.devices_per_run
    if not devices:
        return [None] * study.parallel_runs
    if size > count:
        raise NCAPluginError(f"devices_per_run {size}: this machine has {_cuda_devices(count)}: lower devices_per_run")
    at_a_time = min(study.parallel_runs, count * study.runs_per_device // size)
    # Runs are spread round-robin, so that no device has two runs while another has none.
    return [[devices[(run * size + rank) % count] for rank in range(size)] for run in range(at_a_time)]


def fewer_runs_note(num_devices: int, at_a_time: int, study: StudyConfig) -> str:
    """Return the note on why fewer than `parallel_runs` are done at the same time."""
    runs = "1 run" if at_a_time == 1 else f"{at_a_time} runs"
    note = f"{runs} at a time, not {study.parallel_runs} (parallel_runs): this machine has {_cuda_devices(num_devices)}"
    if study.devices_per_run > 1:
        return f"{note}, and a run takes {study.devices_per_run} (devices_per_run)"
    enough = -(-study.parallel_runs // num_devices)
    return f"{note}; runs that are small enough can share devices with runs_per_device={enough}"


def device_names(count: int, visible: str | None) -> list[str]:
    """Return the names of the CUDA devices.

    Args:
        count: number of devices that CUDA finds.
        visible: CUDA_VISIBLE_DEVICES, which CUDA reads up to the first name that it does not know; None if it is unset.
    """
    return [str(i) for i in range(count)] if visible is None else visible.split(",")[:count]


def cuda_devices() -> list[str]:
    """Return the names of this machine's CUDA devices."""
    # Imported here, because importing torch takes seconds.
    import torch

    # torch asks NVML if it can. After CUDA is initialised, a process cannot fork others that use CUDA.
    return device_names(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _cuda_devices(count: int) -> str:
    return "1 CUDA device" if count == 1 else f"{count} CUDA devices"
