"""Held-out samples of a source as documents for lm-eval. Their texts are ids."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLES: Final = 64


def held_out_documents(uri: str, seq_length: int, **_: Any) -> dict[str, "Dataset"]:
    """Return the first 64 samples of the source's test split, as texts such as "17 4 9 ..." with a context to give and
    a continuation to predict.

    Args:
        seq_length: inputs of a sample, as in training.
        _: other entries of the task's file, which lm-eval passes.

    Raises:
        NCAPluginError: the targets that count are not one contiguous range.
    """
    from datasets import Dataset

    source = parse(uri).for_split("test")
    source.check_seq_length(seq_length)
    rows = []
    for index in range(_SAMPLES):
        sample = source.sample(index, seq_length)
        targets = np.flatnonzero(sample.loss_mask)
        # Target j is token j + 1.
        first, last = int(targets[0]) + 1, int(targets[-1]) + 1
        if last - first + 1 != targets.size:
            raise NCAPluginError(f"source {source.uri}: the targets that count are not one contiguous range")
        tokens = [str(token) for token in sample.tokens[: last + 1]]
        # lm-eval joins the two texts as they are.
        rows.append({"context": " ".join(tokens[:first]), "continuation": " " + " ".join(tokens[first:])})
    return {"test": Dataset.from_list(rows)}
