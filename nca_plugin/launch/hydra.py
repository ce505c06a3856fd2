"""Runs Megatron-LM's pretraining from a Hydra configuration, with sources as data:

    torchrun ... -m nca_plugin.launch.hydra --config-dir D --config-name C data.source=nca data.nca.preset=code

`arguments` holds Megatron-LM's arguments without their dashes. The optional section `data` replaces the data arguments:
`data.source` names a source and `data.<source>.<option>` its options, or `data.path` is the value of `--data-path`,
such as `[0.1, nca://web, 0.9, my_text_document]`. Without `--config-dir`, the files of nca-plugin are used:
`--config-name pretrain model=400m stage=nca data=nca`. A file of NeMo 1 (`trainer`, `model`) is translated, and may
also have the sections `data` and `arguments`.
"""

import shlex

from omegaconf import OmegaConf

from nca_plugin.configuration.hydra_files import resolved, shipped_folder
from nca_plugin.errors import NCAPluginError, one_line_errors
from nca_plugin.files import path_option
from nca_plugin.launch.configuration import ConfigFile, check_world_size, compose_run, load_run
from nca_plugin.launch.megatron import launch
from nca_plugin.launch.multirun import run_jobs
from nca_plugin.launch.process import Parser, die_with_spawning_process, die_with_torchrun
from nca_plugin.launch.quiet import quiet
from nca_plugin.launch.ranks import take_rank
from nca_plugin.nemo1.translation import report
from nca_plugin.this_rank import print_rank_0


def main() -> None:
    """Run `megatron.training.pretrain` with the configuration that this process's arguments name."""
    die_with_torchrun()
    quiet()
    with one_line_errors(of_every_rank=False):
        take_rank()
        options = _parser().parse_intermixed_args()
        file = ConfigFile(options.config_dir, options.config_name, options.overrides)
        if options.multirun and options.cfg is not None:
            raise NCAPluginError("--cfg shows one run: leave --multirun out, and name one value for each key")
        if options.cfg == "job":
            print(OmegaConf.to_yaml(OmegaConf.create(resolved(compose_run(file)))), end="")
        elif options.cfg == "megatron":
            run = load_run(file)
            print(shlex.join(run.arguments))
            if run.translation is not None:
                print(report(run.translation, is_full=True))
        elif options.multirun:
            run_jobs(file)
        else:
            run = load_run(file)
            check_world_size(run)
            if run.translation is not None:
                print_rank_0(report(run.translation))
            launch(run.arguments, run.spelling, run.unset)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m nca_plugin.launch.hydra",
        description="Run Megatron-LM's pretraining from a Hydra configuration.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config-dir",
        type=path_option,
        default=shipped_folder(),
        help="folder of the file (default: nca-plugin's own)",
    )
    parser.add_argument("--config-name", required=True, help="name of the file, without .yaml")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="one run after the other: data.nca.preset=web,code"
    )
    parser.add_argument(
        "--cfg", choices=("job", "megatron"), help="print the configuration or Megatron's arguments, and end"
    )
    parser.add_argument("overrides", nargs="*", help="such as data.source=nca or arguments.lr=1e-3")
    return parser


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    die_with_spawning_process()
