"""Refuses settings of any stack with which a source's samples, or their weights, would depend on a run's layout."""

from nca_plugin.errors import NCAPluginError


def check_loader(kind: str, option: str) -> None:
    """Raise `NCAPluginError` for a data loader that changes the order of a source's samples.

    Args:
        kind: Megatron's type of the data loader.
        option: how the user writes the type.
    """
    if kind == "cyclic":
        raise NCAPluginError(
            f"{option} shuffles by the length of the run and the number of data-parallel ranks, so that batches would "
            "change with them: use single, samples of a source are independent of each other already"
        )


def check_targets(context_parallel_size: int, is_per_token: bool, option: str, way_out: str, what: str) -> None:
    """Raise `NCAPluginError` if context parallelism would weight ranks equally that have unequal numbers of targets.

    Args:
        is_per_token: whether the loss is a mean over the targets of all ranks.
        option: how the user writes the context-parallel size.
        way_out: the setting that makes the loss such a mean.
        what: the part of a sample that has no targets.
    """
    if context_parallel_size > 1 and not is_per_token:
        raise NCAPluginError(
            f"{option} above 1 needs {way_out}: {what} has no targets, so some ranks have fewer targets than others, "
            "and a mean of the ranks' mean losses would weight their targets unequally"
        )
