"""The split of a source as an option of its URI, which is left out for train."""

from nca_plugin.automata import SPLITS
from nca_plugin.errors import NCAPluginError


def checked_split(split: str) -> str:
    """Return `split`. Raises `NCAPluginError` if it is not train, valid or test."""
    if split not in SPLITS:
        raise NCAPluginError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    return split


def split_option(split: str) -> dict[str, object]:
    """Return the split as an option of a URI, none for train."""
    return {} if split == "train" else {"split": split}
