"""Held-out samples of a source as documents of lm-eval, whose texts are ids."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLES: Final = 64


def held_out_documents(uri: str, seq_length: int, **_: Any) -> dict[str, "Dataset"]:
    """Return the first 64 samples of the source's test split: what is given and what is to follow, as "17 4 9 ...".

    Args:
        seq_length: inputs of a sample, as in training.
        _: what else lm-eval knows of the task.

    Raises:
        NCAPluginError: a source whose samples do not begin with what does not count and go on with what does.
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
            raise NCAPluginError(f"source {source.uri}: its targets that count are not in one piece")
        tokens = [str(token) for token in sample.tokens[: last + 1]]
        # lm-eval joins the two as they are.
        rows.append({"context": " ".join(tokens[:first]), "continuation": " " + " ".join(tokens[first:])})
    return {"test": Dataset.from_list(rows)}
