"""Decides whether a process is in CPU mode, and prepares it for Megatron, before Megatron is imported and CUDA is used.

Importing this module needs only the standard library, because `nca-plugin doctor` imports it.
"""

import functools


def has_cuda() -> bool:
    """Return whether there is a CUDA device. Use this only before `prepare`; CPU mode makes CUDA seem available."""
    # Imported only here, because torch takes seconds.
    import torch

    return torch.cuda.is_available()


@functools.cache
def prepare() -> bool:
    """Prepare this process for Megatron and import it. Call this before anything else imports Megatron.

    The result is cached, because it cannot be found again.

    Returns:
        Whether the process is in CPU mode, because there is no CUDA device.
    """
    is_cpu_mode = not has_cuda()
    if is_cpu_mode:
        from nca_plugin.megatron import cuda_on_cpu

        cuda_on_cpu.enable()
    # This imports Megatron, so it comes after CPU mode is enabled.
    from nca_plugin.megatron import plain_torch

    plain_torch.complete()
    if is_cpu_mode:
        from nca_plugin.megatron import cpu_attention

        cpu_attention.use_flash_attention()
    return is_cpu_mode
