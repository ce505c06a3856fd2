"""Runs of a study as the jobs of a Hydra launcher, such as submitit's for SLURM."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nca_plugin.configuration.hydra_files import shipped_folder
from nca_plugin.display.terminal import num_cores
from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.files import complete_files
from nca_plugin.study.execute import execute
from nca_plugin.study.rank_processes import Place
from nca_plugin.study.run import Run

_CONFIG: Final = "study_job"


def run_as_jobs(runs: Sequence[Run], overrides: Sequence[str], ranks: int, folder: Path) -> None:
    """Do runs as jobs, each on one machine.

    Args:
        overrides: Hydra overrides for the launcher and its settings, such as `hydra.launcher.partition=gpu`.
        ranks: number of ranks of each run.
        folder: folder for files of the launcher.

    Raises:
        NCAPluginError: the launcher is not installed or does not have a setting, or a run failed.
    """
    files = []
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        files.append(run.folder / "job.pickle")
        # A job of an earlier start may be reading the file.
        with complete_files(files[-1]) as (unfinished,):
            unfinished.write_bytes(pickle.dumps((run, ranks)))
    own = [f"hydra.sweep.dir='{folder.resolve()}'", "hydra.output_subdir=null", "hydra.job.chdir=false"]
    try:
        with initialize_config_dir(str(shipped_folder().resolve()), job_name="nca-study", version_base="1.3"):
            config = compose(_CONFIG, [*own, *overrides], return_hydra_config=True)
            nodes = config.hydra.launcher.get("nodes", 1)
            if nodes != 1 or config.hydra.launcher.get("tasks_per_node", 1) != 1:
                raise NCAPluginError(
                    "hydra.launcher: a run has one machine and starts its ranks itself: nodes and "
                    "tasks_per_node must be 1"
                )
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=run_job, config=config
            )
            _launch(launcher, files, folder)
    except (HydraException, OmegaConfBaseException) as error:
        raise NCAPluginError(
            f"{' '.join(overrides)}: {one_line(error)} (pip install 'nca-plugin[slurm]' brings submitit_slurm and "
            "submitit_local)"
        ) from error


def _launch(launcher: Launcher, files: Sequence[Path], folder: Path) -> None:
    try:
        for job in launcher.launch([[f"job='{file.resolve()}'"] for file in files], initial_job_idx=0):
            # Raises the error of the job, if it failed.
            _ = job.return_value
    except NCAPluginError:
        raise
    # Launchers raise errors of their own, for a job that was cancelled or out of memory, or a queue that takes none.
    except Exception as error:
        raise NCAPluginError(f"a job failed: {one_line(error)[:300]}; see {folder}") from error


def run_job(config: DictConfig) -> None:
    """Do the run of one job. The launcher calls this on the machine of the job."""
    run, ranks = pickle.loads(Path(config.job).read_bytes())
    execute(run, Place(ranks, max(1, num_cores() // ranks)))
