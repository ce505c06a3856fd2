"""The splits of a source in its URI: absent for train."""

from nca_plugin.automata import SPLITS
from nca_plugin.errors import NCAPluginError


def checked_split(split: str) -> str:
    """Return `split`. Raises `NCAPluginError` if it is not train, valid or test."""
    if split not in SPLITS:
        raise NCAPluginError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    return split


def split_option(split: str) -> dict[str, object]:
    """Return the split as a URI option, absent for train."""
    return {} if split == "train" else {"split": split}
