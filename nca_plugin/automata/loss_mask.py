"""Which targets of a sample that consists of frames count in the loss."""

import numpy as np
from numpy.typing import NDArray


def loss_mask(frame_length: int, seq_length: int) -> NDArray[np.bool_]:
    """Return whether target i, which is token i + 1, counts: bool [seq_length].

    The first frame is never a target, because nothing comes before it that tells its cells (release: the first 37
    positions of frames of 38 tokens). Every later token is one, delimiters included.
    """
    return np.arange(1, seq_length + 1) >= frame_length
