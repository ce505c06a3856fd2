"""Loading tokenizers, and their vocabulary size: the highest id plus one, because ids may have gaps."""

from typing import Any

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.text.hub import is_reachable
from nca_plugin.text.inputs import did_you_mean, exists

_MAX_REASON = 300


def load_auto_tokenizer(name: str) -> Any:
    """Return the tokenizer that transformers' AutoTokenizer loads from a folder or by a name.

    Raises:
        NCAPluginError: the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    is_here = exists(name)
    # If the hub cannot be reached, an earlier download may still be in the cache.
    is_local = is_here or not is_reachable(name, "model", "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=is_local, trust_remote_code=False)
    # AutoTokenizer raises errors of any class.
    except Exception as error:
        if is_local and not is_here:
            raise NCAPluginError(
                f"tokenizer '{name}' cannot be loaded: it is not a folder here, nor cached from an earlier download, "
                f"and the hub cannot be reached{did_you_mean(name)}"
            ) from error
        raise NCAPluginError(f"tokenizer '{name}' cannot be loaded: {one_line(error)[:_MAX_REASON]}") from error


def num_ids(tokenizer: Any) -> int:
    """Return the vocabulary size of a tokenizer of transformers: its highest id plus one."""
    special = [id_ for id_ in tokenizer.all_special_ids if id_ is not None]
    return 1 + max([*tokenizer.get_vocab().values(), *special], default=-1)
