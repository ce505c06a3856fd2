"""The tests here start NeMo 2: `make test-nemo` runs them, in an environment that has it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("nemo") is not None else ["test_*.py"]

if find_spec("nemo") is not None:
    from nca_plugin.megatron import cpu_mode
    from nca_plugin.nemo2.cpu import without_cuda_compiler

    with without_cuda_compiler():
        cpu_mode.prepare()
