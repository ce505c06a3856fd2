"""Trains the stages of a chain file, each with Megatron-LM's pretraining:

    torchrun ... -m nca_plugin.chain CHAIN.yaml [stages.nca.train_iters=1000]

The same command resumes a chain that was interrupted in any way. `nca-plugin chain CHAIN.yaml` shows its progress.
"""

from nca_plugin.chain.supervisor import run_chain
from nca_plugin.errors import one_line_errors
from nca_plugin.files import path_option
from nca_plugin.launch.process import Parser, die_with_torchrun
from nca_plugin.launch.ranks import take_rank


def main() -> None:
    """Train the chain that this process's arguments name."""
    die_with_torchrun()
    with one_line_errors(of_every_rank=False):
        take_rank()
    with one_line_errors(of_every_rank=True):
        options = _parser().parse_intermixed_args()
        run_chain(options.chain, options.overrides)


def _parser() -> Parser:
    parser = Parser(prog="python -m nca_plugin.chain", description="Train the stages of a chain.", allow_abbrev=False)
    parser.add_argument("chain", type=path_option, help="a chain file, or the name of one that comes with nca-plugin")
    parser.add_argument("overrides", nargs="*", help="such as stages.nca.train_iters=1000")
    return parser


if __name__ == "__main__":
    main()
