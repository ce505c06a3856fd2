"""Data sets and models on the Hugging Face hub. A short request shows whether a name exists before it is loaded."""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal

from nca_plugin.errors import NCAPluginError, one_line, require
from nca_plugin.text.inputs import did_you_mean

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
#: Names with these suffixes are taken for files.
_FILES: Final = re.compile(
    r"\.(txt|text|md|rst|py|html?|xml|csv|tsv|json\w*|ndjson|parquet|arrow|gz|bz2|xz|zst|zip|tar|bin|idx|model)$", re.I
)
_SECONDS: Final = 10.0


def is_reachable(name: str, kind: Literal["dataset", "model"], what: str) -> bool:
    """Return True if the hub has `name`, False if the hub cannot be reached.

    Args:
        what: what the user gave the name for, such as "input".

    Raises:
        NCAPluginError: the hub has no such name, or the name is not valid there.
    """
    if not _NAME.fullmatch(name) or _FILES.search(name):
        raise NCAPluginError(f"{what} {name} does not exist{did_you_mean(name)}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    api = HfApi()
    try:
        (api.dataset_info if kind == "dataset" else api.model_info)(name, timeout=_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        if isinstance(error, GatedRepoError):
            return True
        raise NCAPluginError(
            f"{what} {name} is neither a file or folder here nor on the hub{did_you_mean(name)}"
        ) from error
    except HfHubHTTPError:
        # The hub can be reached; loading from it will show a clearer error.
        return True
    except Exception:
        # The HTTP client failed; its errors differ between versions of huggingface_hub.
        return False
    return True


def dataset_rows(name: str, split: str) -> Iterator[Any]:
    """Yield the rows of a data set, streamed.

    Raises:
        NCAPluginError: the data set does not exist or cannot be loaded.
    """
    require("datasets")
    if not is_reachable(name, "dataset", "input"):
        raise NCAPluginError(
            f"input {name} is not a file or folder here, and the hub, which may have a data set of that name, cannot "
            f"be reached{did_you_mean(name)}"
        )
    from datasets import load_dataset

    try:
        yield from load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the hub's client raises errors of many classes
        raise NCAPluginError(
            f"input {name} is a data set that cannot be loaded (split {split}): "
            f"{one_line(error) or type(error).__name__}"
        ) from error
