"""Which targets of a sample that consists of frames count in the loss, and how long a sample must be to have some."""

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError


def loss_mask(frame_length: int, seq_length: int) -> NDArray[np.bool_]:
    """Return whether target i, which is token i + 1, counts: bool [seq_length].

    The first frame is never a target, because nothing comes before it that tells its cells (release: the first 37
    positions of frames of 38 tokens). Every later token is one, delimiters included.
    """
    return np.arange(1, seq_length + 1) >= frame_length


def check_two_frames(frame_length: int, seq_length: int) -> None:
    """Raise `NCAPluginError` unless a sample of `seq_length` inputs can hold two frames."""
    shortest = 2 * frame_length - 1
    if seq_length < shortest:
        raise NCAPluginError(
            f"sequence length {seq_length} is too short for two frames of {frame_length} tokens, and the first is "
            f"never a target: use at least {shortest}"
        )
