"""NeMo 2's command line, with errors of one line, and with CPU mode on a machine without a GPU:

    torchrun ... -m nca_plugin.launch.nemo2 llm pretrain --factory llama32_1b data=nca data.preset=code

Where there is a GPU, `nemo llm pretrain` with the same arguments does the same. Recipe, model, loop, parallelism,
checkpoints and logging are NeMo's; `data=nca` and the names of other sources are factories of the plugin, which NeMo
finds through its entry-point group.
"""

from typing import Any

from nca_plugin.errors import one_line_errors
from nca_plugin.launch.process import print_rank_0


def main() -> None:
    """Run `nemo` with the arguments of this process."""
    from nca_plugin.megatron import cpu

    is_cpu_mode = cpu.is_needed()
    if is_cpu_mode:
        print_rank_0("nca-plugin: no CUDA device: CPU mode")
        from nca_plugin.nemo.nemo2 import cpu as nemo_cpu

        with nemo_cpu.without_cuda_compiler():
            cpu.enable()
    import nemo_run
    from nemo_run.__main__ import app

    run = nemo_run.run

    def run_with_our_errors(fn_or_script: Any, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors(of_every_rank=True):
            if is_cpu_mode:
                print_rank_0(f"nca-plugin: CPU mode sets {' '.join(nemo_cpu.adapt(fn_or_script))}")
            return run(fn_or_script, *args, **kwargs)

    # What NeMo's command line calls with a complete configuration. It shows other errors than exits with a prefix of
    # its own.
    nemo_run.run = run_with_our_errors
    app()


# Lightning starts the other processes of a run as this one was.
if __name__ == "__main__":
    main()
