"""Commands that read text."""

from typing import Annotated

import typer

from nca_plugin.display.terminal import stages
from nca_plugin.errors import require

_Inputs = Annotated[
    list[str],
    typer.Argument(help="Files of text or JSON rows (compressed or not), folders, or Hugging Face data sets."),
]
_Pattern = Annotated[str, typer.Option(help="Files to read from a folder, such as '*.py'.")]
_Exclude = Annotated[list[str] | None, typer.Option(help="Names of files and folders to skip.")]
_TextKey = Annotated[str, typer.Option(help="Field of a JSON row that holds the text.")]
_Split = Annotated[str, typer.Option(help="Split of a Hugging Face data set.")]


def prepare(
    inputs: _Inputs,
    out: Annotated[str, typer.Option(help="Prefix of the .bin and .idx to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="Tokenizer: `bytes`, or a name or folder for transformers.AutoTokenizer.")
    ] = "bytes",
    pattern: _Pattern = "*",
    exclude: _Exclude = None,
    text_key: _TextKey = "text",
    split: _Split = "train",
) -> None:
    """Tokenise text into Megatron's .bin and .idx."""
    from nca_plugin.text.prepare import BYTES, Corpus, input_bytes
    from nca_plugin.text.prepare import prepare as prepare_corpus

    require("torch", "megatron.core", *(() if tokenizer == BYTES else ("transformers",)))
    corpus = Corpus(
        inputs=tuple(inputs),
        tokenizer=tokenizer,
        pattern=pattern,
        exclude=tuple(exclude or ()),
        text_key=text_key,
        split=split,
    )
    with stages("B") as start_stage:
        result = prepare_corpus(corpus, out, start_stage("tokenising", input_bytes(corpus) or 0))
    print(
        f"{result.documents:,} documents, {result.tokens:,} tokens: {result.prefix}.bin, {result.prefix}.idx. "
        f"Train with --data-path {result.prefix} and a vocabulary of {result.vocab_size}."
    )
    for note in result.notes:
        print(f"Note: {note}.")


def match(
    inputs: _Inputs,
    source: Annotated[
        str, typer.Option(help="Automata to compare with, such as 'nca://web?num_colors=15'.")
    ] = "nca://web",
    pattern: _Pattern = "*",
    exclude: _Exclude = None,
    text_key: _TextKey = "text",
    split: _Split = "train",
) -> None:
    """Measure the gzip ratio of a text, and propose a band of gzip scores for pre-pre-training on automata."""
    from nca_plugin.inspection.match import match as match_corpus
    from nca_plugin.inspection.match_summary import match_summary
    from nca_plugin.text.prepare import Corpus

    corpus = Corpus(inputs=tuple(inputs), pattern=pattern, exclude=tuple(exclude or ()), text_key=text_key, split=split)
    with stages() as start_stage:
        found = match_corpus(corpus, source, start_stage)
    print(match_summary(found))
