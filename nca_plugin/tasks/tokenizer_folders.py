"""Writing tokenizers as Hugging Face folders, for models with the vocabularies of this package."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_absent, check_folder, complete_folder
from nca_plugin.text.tokenizers import load_auto_tokenizer

#: The byte tokenizer of `nca_plugin.text.prepare`: ids 0 .. 255 are bytes, 256 ends a document. It is a byte-level
#: vocabulary without merges, with one character for each byte (Radford et al. 2019, GPT-2).
BYTE_TOKENIZER: Final = Path(__file__).with_name("byte_tokenizer")


def write_byte_tokenizer(folder: Path) -> None:
    """Write the byte tokenizer.

    Args:
        folder: must not exist; `AutoTokenizer` and Megatron's HuggingFaceTokenizer can load it.

    Raises:
        NCAPluginError: the folder exists or cannot be written.
    """
    with _new_folder(folder) as partial:
        for file in BYTE_TOKENIZER.iterdir():
            shutil.copyfile(file, partial / file.name)


def write_id_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer for texts of ids, such as "17 4 9", which Megatron's NullTokenizer reads too.

    Args:
        folder: must not exist.

    Raises:
        NCAPluginError: the folder exists or cannot be written.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # lm-eval needs an end token and also pads with it, but every id of the source is in use. single_word=True keeps the
    # 0 in 10 from being read as the end.
    end = AddedToken("0", single_word=True)
    _save(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end), folder)


def save_tokenizer(name: str, folder: Path) -> None:
    """Write the tokenizer that `AutoTokenizer` loads from a name or folder, as a folder.

    Raises:
        NCAPluginError: the tokenizer cannot be loaded, or the folder exists or cannot be written.
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
