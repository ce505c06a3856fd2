"""Runs NeMo 2's command line with one-line errors, and with CPU mode on a machine without a GPU:

    torchrun ... -m nca_plugin.launch.nemo2 llm pretrain --factory llama32_1b data=nca data.preset=code

With a GPU, `nemo llm pretrain` with the same arguments does the same. Recipe, model, loop, parallelism, checkpoints and
logging are NeMo's. `data=nca` and the names of other sources are factories of the plugin, which NeMo finds through its
entry-point group.
"""

from importlib.util import find_spec
from typing import Any

from nca_plugin.errors import NCAPluginError, one_line_errors
from nca_plugin.launch.process import die_with_spawning_process, die_with_torchrun, lost_worker_errors
from nca_plugin.launch.quiet import quiet
from nca_plugin.launch.ranks import take_rank_beside_lightning
from nca_plugin.megatron import cpu_mode
from nca_plugin.this_rank import print_rank_0


def main() -> None:
    """Run `nemo` with the arguments of this process."""
    die_with_torchrun()
    quiet()
    with one_line_errors(of_every_rank=False):
        if find_spec("nemo") is None or find_spec("nemo_run") is None:
            raise NCAPluginError("NeMo 2 is not installed: see docs/nemo2.md, in an environment of its own")
        take_rank_beside_lightning()
    from nca_plugin.nemo2.cpu import without_cuda_compiler

    with without_cuda_compiler():
        is_cpu_mode = cpu_mode.prepare()
    if is_cpu_mode:
        print_rank_0("nca-plugin: no CUDA device: CPU mode")
    _wrap_run(is_cpu_mode=is_cpu_mode)
    _start()


def _wrap_run(*, is_cpu_mode: bool) -> None:
    """Wrap the function by which NeMo's command line runs a configuration, for CPU mode and one-line errors."""
    import nemo_run

    run = nemo_run.run

    def run_with_our_errors(fn_or_script: Any, *args: Any, **kwargs: Any) -> Any:
        # A single rank may have an error, such as one in its own samples.
        with one_line_errors(of_every_rank=True), lost_worker_errors():
            if is_cpu_mode:
                from nca_plugin.nemo2.cpu import adapt, do_not_gather_timers

                do_not_gather_timers()
                print_rank_0(f"nca-plugin: CPU mode sets {' '.join(adapt(fn_or_script))}")
            try:
                return run(fn_or_script, *args, **kwargs)
            except NCAPluginError as error:
                # Fiddle, which builds the objects of a configuration, adds lines to the message of an error.
                raise getattr(error, "proxy_base_exception", error) from None

    nemo_run.run = run_with_our_errors


def _start() -> None:
    from nemo_run.__main__ import app

    app()


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    die_with_spawning_process()
