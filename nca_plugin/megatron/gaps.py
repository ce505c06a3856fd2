"""Checks for gaps between a tokenizer's ids. Megatron counts the ids, so that the highest may have no embedding row."""

from argparse import Namespace

from megatron.training import get_tokenizer

from nca_plugin.errors import NCAPluginError
from nca_plugin.text.tokenizers import num_ids
from nca_plugin.transition.vocabulary import padded_vocab_size


def check_gaps(args: Namespace) -> None:
    """Raise `NCAPluginError` if the model has no embedding row for some id of a Hugging Face tokenizer.

    Args:
        args: Megatron-LM's validated arguments.
    """
    if args.tokenizer_type != "HuggingFaceTokenizer" or args.padded_vocab_size is None:
        return
    # Megatron's tokenizer wraps one of its library, which wraps that of transformers.
    tokenizer = getattr(getattr(get_tokenizer(), "_tokenizer", None), "tokenizer", None)
    ids = 0 if tokenizer is None else num_ids(tokenizer)
    if ids > args.padded_vocab_size:
        rows = padded_vocab_size(ids, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size)
        raise NCAPluginError(
            f"the ids of --tokenizer-model {args.tokenizer_model} go up to {ids - 1}, with gaps, and Megatron counts "
            f"them, so that the model would have only {args.padded_vocab_size} embedding rows: add --padded-vocab-size "
            f"{rows}"
        )
