"""Tokenizers, and how many ids they have: one more than the highest, as ids may have gaps between them."""

from typing import Any

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.text.hub import is_reachable
from nca_plugin.text.inputs import did_you_mean, exists

_MAX_REASON = 300


def load_auto_tokenizer(name: str) -> Any:
    """Return what transformers' AutoTokenizer loads from a folder, or by a name.

    Raises:
        NCAPluginError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    is_here = exists(name)
    # Without a hub, what has been loaded before is still there.
    is_local = is_here or not is_reachable(name, "model", "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=is_local, trust_remote_code=False)
    # It raises whatever it meets.
    except Exception as error:
        if is_local and not is_here:
            raise NCAPluginError(
                f"tokenizer '{name}' cannot be loaded: it is no folder here, nor kept from an earlier download, and "
                f"the hub cannot be reached{did_you_mean(name)}"
            ) from error
        raise NCAPluginError(f"tokenizer '{name}' cannot be loaded: {one_line(error)[:_MAX_REASON]}") from error


def num_ids(tokenizer: Any) -> int:
    """Return how many ids a tokenizer of transformers has: one more than the highest."""
    special = [id_ for id_ in tokenizer.all_special_ids if id_ is not None]
    return 1 + max([*tokenizer.get_vocab().values(), *special], default=-1)
