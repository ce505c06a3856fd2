"""What Hugging Face's hub has under a name, asked once and quickly before it is loaded."""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal

from nca_plugin.errors import NCAPluginError, one_line, require
from nca_plugin.text.inputs import did_you_mean

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
#: Names that end so are those of files.
_FILES: Final = re.compile(
    r"\.(txt|text|md|rst|py|html?|xml|csv|tsv|json\w*|ndjson|parquet|arrow|gz|bz2|xz|zst|zip|tar|bin|idx|model)$", re.I
)
_SECONDS: Final = 10.0


def is_reachable(name: str, kind: Literal["dataset", "model"], what: str) -> bool:
    """Return whether the hub has `name`, False where it cannot be asked.

    Args:
        what: what the user gave the name for, such as "input".

    Raises:
        NCAPluginError: a name that none on the hub can have, or that none has.
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
        # It answers, and what it says shows better where the thing itself is asked for.
        return True
    except Exception:
        # One of the errors of the HTTP client, which differs between versions of the hub's.
        return False
    return True


def dataset_rows(name: str, split: str) -> Iterator[Any]:
    """Return the rows of a data set, streamed.

    Raises:
        NCAPluginError: there is none of this name, or it cannot be loaded.
    """
    require("datasets")
    if not is_reachable(name, "dataset", "input"):
        raise NCAPluginError(
            f"input {name} is no file or folder here, and the hub, which may have a data set of that name, cannot be "
            f"reached{did_you_mean(name)}"
        )
    from datasets import load_dataset

    try:
        yield from load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the hub's client raises many kinds, of which none is ours to handle
        raise NCAPluginError(
            f"input {name} is a data set that cannot be loaded (split {split}): "
            f"{one_line(error) or type(error).__name__}"
        ) from error
