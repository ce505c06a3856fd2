"""Keeps notices of Megatron and PyTorch about missing packages and about Megatron's own code out of a run's log.

They do not concern the run. The launchers check themselves whether a run needs Transformer Engine or Apex.
"""

import logging
import os
import warnings
from functools import partial
from typing import Final

_WARNINGS: Final = (
    r"(Transformer Engine and )?Apex (is|are) not installed\. Falling back",
    r"Only transformer-engine>=\S+ supports MoE experts, but your version is 0\.0\.0\.",
    r"MimoModelConfig is experimental",
    r"'pin_memory' argument is set as true but no accelerator is found",
    # This folder exists only in NeMo's container. A missing group of files has an error of its own.
    r"provider=hydra\.searchpath in main",
    # The overridden default is the launcher's.
    r"Overriding default arguments for tokenizer_type:GPT2BPETokenizer",
)
_LOGGED: Final = {"megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED"}


def quiet() -> None:
    """Drop these notices from now on. Call this before importing Megatron, which gives most of them."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message, UserWarning)
    for name, message in _LOGGED.items():
        logging.getLogger(name).addFilter(partial(_is_other, message))
    # If the hub cannot be reached, each retry would print a line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def quiet_about_split() -> None:
    """Drop the advice to give a --split, which has no meaning for sources, since each of their splits is a stream."""
    warnings.filterwarnings("ignore", "Please specify --split when using --data-path", UserWarning)


def _is_other(start: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(start)
