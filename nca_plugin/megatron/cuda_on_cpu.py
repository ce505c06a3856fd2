"""CPU mode: Megatron's own training loop on a machine without a GPU.

Megatron uses CUDA in many places: devices, streams, events, memory figures, the CUDA generator, NCCL. CPU mode replaces
all of them on the CPU, so that the loop, its parallelism and its checkpoints are the real ones, with gloo for
communication. It is for laptops, tests and small studies.

CPU mode changes `torch.cuda` for the whole process. So only launchers switch it on, by `nca_plugin.megatron.cpu_mode`,
before Megatron is imported, and never if there is a CUDA device. Nothing else in the package knows about it.
"""

import collections
import contextlib
import ctypes
import functools
import logging
import os
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: Megatron-LM arguments that a run without a GPU needs. They come last, so that they override the user's.
CPU_ARGUMENTS = (
    "--distributed-backend=gloo",
    "--transformer-impl=local",
    "--use-cpu-initialization",
    "--no-persist-layer-norm",
    "--no-gradient-accumulation-fusion",
    "--no-masked-softmax-fusion",
    "--no-bias-gelu-fusion",
    "--no-bias-swiglu-fusion",
    "--no-bias-dropout-fusion",
    "--no-rope-fusion",
)

_CPU = torch.device("cpu")


def enable() -> None:
    """Map CUDA to the CPU for this process. Call once, before anything of Megatron is imported."""
    # At import, torch._dynamo makes a table of torch.cuda's functions, which must not contain a replacement twice.
    import torch._dynamo  # noqa: F401

    # Compiling fusions would take more time than it saves. torch reads the variable at each call.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    _keep_freed_memory()
    _replace_cuda_functions()
    _replace_accelerator()
    _force_gloo()
    _skip_talk_with_nobody()
    _give_loaders_a_generator()
    # Megatron warns if the CPU's generator changes while CUDA's is in use, but here they are the same.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: not record.getMessage().startswith("CPU RNG state changed within GPU RNG context")
    )
    _CpuDevices().__enter__()  # type: ignore[no-untyped-call]


def _give_loaders_a_generator() -> None:
    """Give data loaders their own generator, so that they do not draw from that of dropout, as on a GPU.

    A resumed run restores the generator and then makes its loaders. If these drew from it, dropout would change.
    """
    loader = torch.utils.data.DataLoader
    init = loader.__init__

    @functools.wraps(init)
    def init_with_generator(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.generator is None:
            self.generator = torch.Generator()

    loader.__init__ = init_with_generator  # type: ignore[method-assign]


def _keep_freed_memory() -> None:
    """Make glibc reuse the memory of activations instead of returning it to the system after every operation.

    Page faults took a fifth of a small run's time. This avoids two thirds of them.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc takes
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 64 << 20)


class _CpuDevices(TorchFunctionMode):
    """Creates or moves tensors on the CPU wherever a CUDA device is requested."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs["device"] = _to_cpu(kwargs["device"])
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        if func is torch.Tensor.to:
            args = (args[0], *(_to_cpu(a) for a in args[1:]))
        return func(*args, **kwargs)


def _to_cpu(device: Any) -> Any:
    is_index = isinstance(device, int) and not isinstance(device, bool)
    is_cuda_name = isinstance(device, str) and device.startswith("cuda")
    is_cuda_device = isinstance(device, torch.device) and device.type == "cuda"
    return _CPU if is_index or is_cuda_name or is_cuda_device else device


class _Event:
    """Stands for an event of a device that has finished all its work."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class _Stream(contextlib.nullcontext[None]):
    """Stands for a stream of a device that has finished all its work."""

    cuda_stream = 0
    device = _CPU

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: Any) -> _Event:
        return _Event()


def _nothing(*_: Any, **__: Any) -> None: ...


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _replace_cuda_functions() -> None:
    cuda = torch.cuda
    generator = torch.default_generator
    replacements: dict[str, Any] = {
        # Megatron asserts that CUDA is available before it does anything.
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        # Before PyTorch 2.13, its optimizers call this.
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": _nothing,
        # There must be a device for every local rank.
        "device_count": lambda: max(
            int(os.environ.get("LOCAL_RANK", "0")) + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        ),
        "current_device": _zero,
        "set_device": _nothing,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "set_stream": _nothing,
        "stream": lambda _stream: contextlib.nullcontext(),
        "memory_allocated": _zero,
        "max_memory_allocated": _zero,
        "memory_reserved": _zero,
        "max_memory_reserved": _zero,
        "reset_peak_memory_stats": _nothing,
        "memory_stats": lambda *_: collections.defaultdict(int),
        "mem_get_info": lambda *_: (_host_memory(), _host_memory()),
        "manual_seed": lambda seed: generator.manual_seed(int(seed)),
        "manual_seed_all": _nothing,
        "default_generators": [generator],
        "get_device_capability": lambda *_: (0, 0),
        "get_device_name": lambda *_: "CPU",
        "get_device_properties": lambda *_: types.SimpleNamespace(
            name="CPU", major=0, minor=0, total_memory=_host_memory(), multi_processor_count=os.cpu_count()
        ),
    }
    for name, replacement in replacements.items():
        setattr(cuda, name, replacement)
    for module in (cuda, cuda.random):
        setattr(module, "get_rng_state", lambda *_, **__: generator.get_state())  # noqa: B010
        setattr(module, "set_rng_state", lambda state, *_, **__: generator.set_state(state))  # noqa: B010
    cuda.random.current_device = _zero  # type: ignore[attr-defined]
    cuda.nvtx.range_push = _nothing
    cuda.nvtx.range_pop = _nothing
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte"):
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))

    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    # Megatron groups gradients by type string and knows only the CUDA names.
    tensor_type = torch.Tensor.type

    @functools.wraps(tensor_type)
    def cuda_named_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = tensor_type(self, *args, **kwargs)
        return f"torch.cuda.{result.rsplit('.', 1)[-1]}" if isinstance(result, str) else result

    torch.Tensor.type = cuda_named_type  # type: ignore[assignment,method-assign]


def _replace_accelerator() -> None:
    accelerator = torch.accelerator
    replacements: dict[str, Any] = {
        "is_available": lambda: False,
        "current_accelerator": lambda check_available=False: None if check_available else _CPU,
        "current_device_index": _zero,
        "synchronize": _nothing,
    }
    for name, replacement in replacements.items():
        setattr(accelerator, name, replacement)


def _force_gloo() -> None:
    distributed = torch.distributed
    init_process_group, new_group = distributed.init_process_group, distributed.new_group

    @functools.wraps(init_process_group)
    def init_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return init_process_group("gloo", *args, **kwargs)

    @functools.wraps(new_group)
    def new_gloo_group(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pg_options", None)
        return new_group(*args, **{**kwargs, "backend": "gloo"})

    all_to_all_single = distributed.all_to_all_single

    @functools.wraps(all_to_all_single)
    def all_to_all_of_lists(*args: Any, **kwargs: Any) -> Any:
        # Megatron passes the numbers of tokens for each expert as arrays, which only NCCL accepts.
        for name in ("output_split_sizes", "input_split_sizes"):
            if kwargs.get(name) is not None:
                kwargs[name] = [int(size) for size in kwargs[name]]
        return all_to_all_single(*args, **kwargs)

    distributed.init_process_group = init_gloo
    distributed.new_group = new_gloo_group
    distributed.all_to_all_single = all_to_all_of_lists


def _skip_talk_with_nobody() -> None:
    """Make collectives that change nothing in a group of one rank return at once.

    gloo hands each of them to another thread and waits for it, which took 6 % of a small run's time.
    """
    distributed = torch.distributed
    all_reduce, broadcast = distributed.all_reduce, distributed.broadcast

    def is_alone(group: Any) -> bool:
        # A group that collects operations expects to be given at least one.
        is_collecting = group in torch.distributed.distributed_c10d._world.pg_coalesce_state
        return distributed.get_world_size(group) == 1 and not is_collecting

    @functools.wraps(all_reduce)
    def all_reduce_of_others(
        tensor: torch.Tensor, op: Any = distributed.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        return None if not async_op and is_alone(group) else all_reduce(tensor, op, group, async_op)

    @functools.wraps(broadcast)
    def broadcast_to_others(
        tensor: torch.Tensor, src: int | None = None, group: Any = None, async_op: bool = False, **kwargs: Any
    ) -> Any:
        return None if not async_op and is_alone(group) else broadcast(tensor, src, group, async_op, **kwargs)

    distributed.all_reduce = all_reduce_of_others
    # Other arguments, such as `group_src`, are passed on as they are.
    distributed.broadcast = broadcast_to_others  # type: ignore[assignment]
