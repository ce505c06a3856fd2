"""Fine-tuning on examples of a task, with Megatron's SFT dataset.

Each example is a sample: its prompt, its answer, the tokenizer's end-of-text id, and padding. Only the answer and the
end-of-text id count in the loss. Examples are not packed, so that any attention can be used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import Split
from megatron.training.datasets.sft_dataset import IGNORE_INDEX, SFTDataset
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.text.examples import Example, read_examples

#: A message of a conversation for Megatron's SFT dataset. Its content is ids instead of text.
Message = dict[str, Any]


class TokenizedExamples:
    """The examples of a file as ids.

    Raises:
        NCAPluginError: for the reasons of `read_examples` and `check_tokenizer`, or if an example is longer than a
            sequence.
    """

    def __init__(self, path: str, tokenizer: Any, seq_length: int) -> None:
        check_tokenizer(tokenizer)
        examples = read_examples(Path(path))
        self._prompts = [_ids(tokenizer, example.prompt) for example in examples]
        end = np.array([tokenizer.eod], np.int64)
        self._answers = [np.concatenate([_ids(tokenizer, example.answer), end]) for example in examples]
        self._check_lengths(path, examples, seq_length)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> list[Message]:
        return [
            {"role": "user", "content": self._prompts[index]},
            {"role": "assistant", "content": self._answers[index]},
        ]

    @property
    def num_answer_tokens(self) -> int:
        """Number of supervised tokens in an epoch: all answers with their end-of-text ids."""
        return sum(map(len, self._answers))

    def is_learned(self, index: int, seq_length: int) -> NDArray[np.bool_]:
        """Return which targets of an example's sample are tokens of its answer, bool [seq_length]."""
        start, length = len(self._prompts[index]), len(self._answers[index])
        # Target j is token j + 1.
        position = np.arange(1, seq_length + 1)
        return (position >= start) & (position < start + length)

    def _check_lengths(self, path: str, examples: Sequence[Example], seq_length: int) -> None:
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(self._prompts, self._answers, strict=True)]
        # The last token is only a target, so an example may be one token longer than a sequence.
        too_long = [index for index, length in enumerate(lengths) if length > seq_length + 1]
        if too_long:
            first = too_long[0]
            raise NCAPluginError(
                f"{path}: {len(too_long):,} of {len(lengths):,} examples are longer than a sequence of {seq_length} "
                f"tokens, the longest of {max(lengths):,}, the first '{examples[first].prompt[:40]}': leave them out "
                "(nca-plugin examples --max-tokens), or raise --seq-length"
            )


class Conversations:
    """The tokenizer for Megatron's SFT dataset, for messages that are ids already."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eod: int = tokenizer.eod
        # Padding may have any id, because targets are selected by position.
        self.pad: int = tokenizer.eod
        self.vocab_size: int = tokenizer.vocab_size
        self.unique_identifiers = tokenizer.unique_identifiers

    def tokenize_conversation(
        self, conversation: list[Message], return_target: bool, add_generation_prompt: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of a conversation, and the same as targets, with `IGNORE_INDEX` where they do not count."""
        tokens = np.concatenate([message["content"] for message in conversation])
        targets = [
            message["content"] if message["role"] == "assistant" else np.full_like(message["content"], IGNORE_INDEX)
            for message in conversation
        ]
        return tokens, np.concatenate(targets)


class ExampleDataset(SFTDataset):
    """Samples of examples: tokens, labels and position_ids int64 [S], loss_mask float32 [S].

    Every epoch of training has its own order, which depends only on the seed and the epoch.
    """

    dataset: TokenizedExamples

    def __init__(
        self,
        dataset: TokenizedExamples,
        dataset_path: str | None,
        indices: NDArray[Any],
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        if index_split is Split.train and num_samples is not None:
            self.indices = _shuffled(indices, num_samples, config.random_seed)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> TokenizedExamples:
        return TokenizedExamples(dataset_path, config.tokenizer.tokenizer, config.sequence_length)

    def announcement(self) -> str:
        """Return the line for a run's log that says what it is fine-tuned on."""
        num_examples = len(self.dataset)
        return (
            f"fine-tuning on {num_examples:,} examples of {self.dataset_path}, {self.dataset.num_answer_tokens:,} "
            f"answer tokens in each of {len(self.indices) / num_examples:.4g} epochs"
        )

    def __len__(self) -> int:
        return len(self.indices) if self.num_samples is None else self.num_samples

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(idx)
        learned = self.dataset.is_learned(int(self.indices[idx % len(self.indices)]), self.config.sequence_length)
        return {
            "tokens": sample["tokens"],
            "labels": sample["labels"],
            "position_ids": sample["position_ids"],
            # Megatron's own mask drops every label with the id of the padding, also within an answer.
            "loss_mask": torch.from_numpy(learned).float(),
        }


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `NCAPluginError` unless Megatron's tokenizer turns text into ids, adds none, and has an end-of-text id."""
    try:
        added = tokenizer.tokenize("")
    except ValueError as error:
        raise NCAPluginError(
            "--sft needs a tokenizer of text, such as --tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER; "
            "nca-plugin tokenizer writes that of bytes"
        ) from error
    if len(added):
        raise NCAPluginError(
            "the tokenizer adds special tokens to every text, so also between a prompt and its answer: add "
            "--tokenizer-hf-no-include-special-tokens"
        )
    if tokenizer.eod is None:
        raise NCAPluginError("the tokenizer has no end-of-text token, which must end every answer")


def _ids(tokenizer: Any, text: str) -> NDArray[np.int64]:
    return np.array(tokenizer.tokenize(text), np.int64)


def _shuffled(indices: NDArray[Any], num_samples: int, seed: int) -> NDArray[Any]:
    """Return the indices of a run's examples: all in one order, then all in another order, and so on."""
    epochs = -(-num_samples // len(indices))
    orders = [np.random.default_rng((seed, epoch)).permutation(indices) for epoch in range(epochs)]
    return np.concatenate(orders)[:num_samples]
