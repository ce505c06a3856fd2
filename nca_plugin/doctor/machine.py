"""Checks of the machine."""

from __future__ import annotations

from typing import Final

from nca_plugin.deflate import SIZES_OF_ZLIB
from nca_plugin.doctor.check import Check, Verdict
from nca_plugin.doctor.facts import Facts

# NVIDIA's recommendation for containers. Docker's default is 64 MB.
_SHARED_MEMORY: Final = 10**9
_OPEN_FILES: Final = 1024


def check_device(facts: Facts) -> Check:
    """Check whether runs use CUDA or CPU mode, and whether that is right for this machine."""
    if facts.told("torch", "devices") is None:
        return Check("device", "unknown", Verdict.ABSENT, "torch cannot be asked")
    cuda = facts.told("torch", "cuda")
    if facts.devices:
        return Check("device", f"CUDA {cuda}", detail=f"{len(facts.devices)} x {facts.devices[0]}")
    if not facts.has_nvidia_driver:
        return Check("device", "CPU", detail="there is no NVIDIA driver: CPU mode")
    if facts.visible_devices in ("", "-1"):
        detail = "CPU mode: CUDA_VISIBLE_DEVICES hides every device"
        return Check("device", "CPU", Verdict.WARN, detail, "unset CUDA_VISIBLE_DEVICES")
    if cuda is None:
        fix = facts.pip("install --force-reinstall torch")
        return Check("device", "CPU", Verdict.BROKEN, "there is an NVIDIA driver, but torch is built without CUDA", fix)
    detail = f"there is an NVIDIA driver, but torch finds no device: {facts.told('torch', 'reason')}"
    fix = f"nvidia-smi (its CUDA version must be {cuda} or newer, else install a newer driver or an older torch)"
    return Check("device", "CPU", Verdict.BROKEN, detail, fix)


def check_deflate(facts: Facts) -> Check:
    """Check whether compression gives zlib's sizes, on which the choice of samples depends."""
    pairs = [(SIZES_OF_ZLIB[i], size) for i, size in enumerate(facts.deflate_sizes)]
    wrong = [f"{size} bytes for {expected}" for expected, size in pairs if size != expected]
    if pairs and not wrong:
        sizes = ", ".join(map(str, SIZES_OF_ZLIB))
        return Check("deflate", facts.compressor, detail=f"sizes as zlib's: {sizes}")
    sizes = (
        f"{len(wrong)} of {len(SIZES_OF_ZLIB)} known payloads take {', '.join(wrong)}" if wrong else "has no gzip -9"
    )
    detail = f"{sizes}: samples would differ from other machines', so nca:// is refused"
    if facts.is_zlib_replaced:
        fix = f"{facts.interpreter} -m site (a sitecustomize.py or .pth in these folders puts it in zlib's place)"
    else:
        ask = f"{facts.interpreter} -c 'import zlib; print(zlib.ZLIB_RUNTIME_VERSION)'"
        fix = f"{ask} (use a Python, or an LD_PRELOAD, with the original zlib, such as Debian's)"
    return Check("deflate", facts.compressor, Verdict.BROKEN, detail, fix)


def check_dataset_helper(facts: Facts) -> Check | None:
    """Check whether Megatron's compiled dataset helper exists or can be compiled. None if Megatron was not imported."""
    if facts.told("dataset helper", "makefile") is None:
        return None
    name, has_makefile = "dataset helper", facts.told("dataset helper", "makefile")
    reason = facts.told("dataset helper", "reason")
    found = "compiled" if reason is None else "not compiled"
    if has_makefile and not facts.has_compiler:
        detail = "Megatron compiles it at each start, with make and g++"
        return Check(name, found, Verdict.BROKEN, detail, "apt-get install make g++")
    if reason is None or has_makefile:
        return Check(name, found, detail="" if reason is None else "the first run compiles it")
    fix = facts.pip(f"install --force-reinstall --no-deps megatron-core=={facts.versions['megatron-core']}")
    return Check(name, found, Verdict.BROKEN, reason, fix)


def check_shared_memory(facts: Facts) -> Check | None:
    """Check whether shared memory is large enough for data loaders. None if /dev/shm does not exist."""
    if facts.shared_memory is None:
        return None
    found = f"{facts.shared_memory / 1e9:.3g} GB"
    if facts.shared_memory >= _SHARED_MEMORY:
        return Check("/dev/shm", found)
    detail = "data loaders and NCCL share memory there: a bus error if it is full"
    return Check(
        "/dev/shm", found, Verdict.WARN, detail, "mount -o remount,size=8g /dev/shm (docker run --shm-size=8g)"
    )


def check_open_files(facts: Facts) -> Check | None:
    """Check whether a run may open enough files. None if there is no limit."""
    if facts.open_files is None:
        return None
    found = f"{facts.open_files:,}"
    if facts.open_files >= _OPEN_FILES:
        return Check("open files", found)
    return Check("open files", found, Verdict.WARN, "data loaders and checkpoints open many", "ulimit -n 65536")


def check_torchrun(facts: Facts) -> Check:
    """Check whether `torchrun` starts this interpreter."""
    if "torch" not in facts.versions:
        return Check("torchrun", "absent", Verdict.ABSENT, "comes with torch")
    if facts.torchrun is None:
        found, detail = "not on PATH", ""
    elif facts.is_own_torchrun:
        return Check("torchrun", "on PATH")
    else:
        found, detail = "another's", f"{facts.torchrun} starts another Python"
    fix = f"{facts.interpreter} -m torch.distributed.run (in place of torchrun)"
    return Check("torchrun", found, Verdict.WARN, detail, fix)
