"""What makes the samples of a source, or their weights, depend on the layout of a run: the same for every stack."""

from nca_plugin.errors import NCAPluginError


def check_loader(kind: str, option: str) -> None:
    """Raise `NCAPluginError` for a data loader that takes a source's samples in another order than their own.

    Args:
        kind: Megatron's type of the loader.
        option: how the user writes it.
    """
    if kind == "cyclic":
        raise NCAPluginError(
            f"{option} shuffles by the length of the run and the number of data-parallel ranks, so that batches would "
            "change with them: use single, samples of a source are independent of each other already"
        )


def check_targets(context_parallel_size: int, is_per_token: bool, option: str, way_out: str, what: str) -> None:
    """Raise `NCAPluginError` for context parallelism that gives unequal numbers of targets equal weights.

    Args:
        is_per_token: whether the loss is a mean over the targets of all ranks.
        option: how the user writes the size.
        way_out: what makes the loss such a mean.
        what: is no target, in the data of the run.
    """
    if context_parallel_size > 1 and not is_per_token:
        raise NCAPluginError(
            f"{option} above 1 needs {way_out}: {what} is no target, so that ranks hold unequal numbers of targets, "
            "and without it each rank's mean counts the same"
        )
