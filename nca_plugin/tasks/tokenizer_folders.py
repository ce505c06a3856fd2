"""Tokenizers as Hugging Face folders, for models of this package's own vocabularies."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_absent, check_folder, complete_folder
from nca_plugin.text.tokenizers import load_auto_tokenizer

#: The tokenizer of bytes, that of `nca_plugin.text.prepare`: ids 0 .. 255, and 256 at the end of a document. A
#: byte-level vocabulary without merges, in which a character of its own stands for each byte (Radford et al. 2019,
#: GPT-2).
BYTE_TOKENIZER: Final = Path(__file__).with_name("byte_tokenizer")


def write_byte_tokenizer(folder: Path) -> None:
    """Write the tokenizer of bytes.

    Args:
        folder: must not exist; `AutoTokenizer` and Megatron's HuggingFaceTokenizer load it.

    Raises:
        NCAPluginError: the folder exists or cannot be written.
    """
    with _new_folder(folder) as partial:
        for file in BYTE_TOKENIZER.iterdir():
            shutil.copyfile(file, partial / file.name)


def write_id_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write the tokenizer of texts such as "17 4 9", which are ids, as Megatron's NullTokenizer reads them.

    Args:
        folder: must not exist.

    Raises:
        NCAPluginError: the folder exists or cannot be written.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No id of a source is free for an end or for padding; lm-eval asks for an end, and pads with it what it masks.
    # A word of its own: in 10 there is no end.
    end = AddedToken("0", single_word=True)
    _save(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end), folder)


def save_tokenizer(name: str, folder: Path) -> None:
    """Write what `AutoTokenizer` loads by a name, or from a folder, as a folder.

    Raises:
        NCAPluginError: it cannot be loaded, or the folder exists or cannot be written.
    """
    _save(load_auto_tokenizer(name), folder)


def _save(tokenizer: Any, folder: Path) -> None:
    with _new_folder(folder) as partial:
        tokenizer.save_pretrained(partial)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    check_absent(folder)
    check_folder(folder.parent)
    try:
        with complete_folder(folder) as partial:
            yield partial
    except OSError as error:
        raise NCAPluginError(f"output {folder} cannot be written: {error.strerror or error}") from error
