"""Checks that the files that a run's arguments name can be read, and that it can write to its folders."""

import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.errors import NCAPluginError, in_context, one_line
from nca_plugin.files import check_folder
from nca_plugin.this_rank import print_rank_0

_READ: Final = (
    *("data_args_path", "per_split_data_args_path", "per_dataset_sequences_path", "yaml_cfg"),
    *("vocab_file", "merge_file", "heterogeneous_layers_config_path", "tp_comm_overlap_cfg"),
    *("nccl_communicator_config_path", "te_precision_config_file", "kitchen_config_file"),
)
#: Files that only tokenizers of text read, not the NullTokenizer of sources.
_OF_TEXT: Final = ("vocab_file", "merge_file")
#: Types of tokenizers whose model is a file. For other types it may be a folder or a name on the hub.
_TOKENIZERS_IN_A_FILE: Final = (
    *("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "TikTokenizer"),
)
_FOLDERS_WRITTEN: Final = (
    *("save", "tensorboard_dir", "wandb_save_dir", "data_cache_path", "logits_save_dir", "ckpt_convert_save"),
    *("non_persistent_global_ckpt_dir", "non_persistent_local_ckpt_dir", "config_logger_dir"),
    *("object_storage_cache_path", "moe_routing_trace_path"),
)


def check_files(args: Namespace, name: Callable[[str], str], *, is_run: bool) -> None:
    """Raise `NCAPluginError` for a file that cannot be read or a folder that cannot be written to.

    Paths in object storage are left to Megatron.

    Args:
        args: Megatron-LM's parsed arguments, validated or not.
        name: returns how the user writes an argument.
        is_run: whether the run follows. If not, files that earlier runs will write may be missing.
    """
    for argument in (*_READ, "save", "load", "pretrained_checkpoint"):
        if getattr(args, argument, None) == "":
            raise NCAPluginError(f"{name(argument)} is empty: name a path, or leave it out")
    for argument in _READ:
        if argument in _OF_TEXT and args.tokenizer_type == "NullTokenizer":
            continue
        if (value := _local(args, argument)) is not None:
            _check_file(value, name(argument))
    if args.tokenizer_type in _TOKENIZERS_IN_A_FILE and (value := _local(args, "tokenizer_model")) is not None:
        _check_file(value, name("tokenizer_model"))
    for argument in ("per_dataset_sequences_path", "heterogeneous_layers_config_path"):
        if (value := _local(args, argument)) is not None:
            _check_mapping(value.read_bytes(), f"{name(argument)} {value}")
    if (layers := getattr(args, "heterogeneous_layers_config_encoded_json", None)) is not None:
        _check_mapping(layers, name("heterogeneous_layers_config_encoded_json"))
    if is_run:
        for argument in _FOLDERS_WRITTEN:
            if (value := _local(args, argument)) is not None:
                with in_context(name(argument)):
                    _check_written(value)
        _check_checkpoints(args, name)


def _local(args: Namespace, argument: str) -> Path | None:
    value = getattr(args, argument, None)
    return None if not value or not isinstance(value, str) or "://" in value else Path(value)


def _check_file(file: Path, option: str) -> None:
    try:
        # A pipe might never end, and could be read only once.
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise NCAPluginError(f"{option} {file} is no file")
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise NCAPluginError(f"{option} {file} cannot be read: {error.strerror or error}") from error


def _check_mapping(text: str | bytes, where: str) -> None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NCAPluginError(f"{where} is no JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise NCAPluginError(f"{where} must be a JSON object, with names and values")


def _check_written(folder: Path) -> None:
    """Raise `NCAPluginError` if the process cannot write to a folder, which need not exist yet."""
    check_folder(folder)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        # Permissions alone do not show whether a file system can be written to.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise NCAPluginError(f"cannot write to {folder}: {error.strerror or error}; choose another output") from error


def _check_checkpoints(args: Namespace, name: Callable[[str], str]) -> None:
    """Refuse a missing checkpoint if the run needs one."""
    from megatron.training.checkpointing import checkpoint_exists

    for argument in ("load", "pretrained_checkpoint"):
        if (path := _local(args, argument)) is not None and path.exists() and not path.is_dir():
            raise NCAPluginError(f"{name(argument)} {path} is no folder")
    for path in (args.load, args.pretrained_checkpoint):
        if path is not None and checkpoint_exists(path):
            _check_described(find_checkpoint(Path(path)))
            return
    if (path := _local(args, "load")) is not None:
        _check_tracker(path, args, name)
    if (path := _local(args, "pretrained_checkpoint")) is not None and not checkpoint_exists(str(path)):
        raise NCAPluginError(f"{name('pretrained_checkpoint')} {path} holds no checkpoint{_whether_there(path)}")
    needs = next((n for n in ("finetune", "exit_on_missing_checkpoint", "use_checkpoint_args") if getattr(args, n)), "")
    if needs and args.pretrained_checkpoint is None:
        path = _local(args, "load")
        if path is not None and not args.ckpt_step:
            raise NCAPluginError(
                f"{name(needs)} needs a checkpoint, and {name('load')} {path} holds none{_whether_there(path)}"
            )


def _check_tracker(folder: Path, args: Namespace, name: Callable[[str], str]) -> None:
    """Refuse a folder with iterations but without a tracker file, with which Megatron would begin anew silently.

    If the run saves to the same folder, the first save may have been interrupted, so that there is only a warning.
    """
    complete = sorted(path.parent.name for path in folder.glob("iter_*/metadata.json"))
    if not complete or args.ckpt_step:
        return
    text = f"{name('load')} {folder} holds {complete[-1]}, but no {TRACKER}, which says what to load"
    if args.save is None or os.path.realpath(args.save) != os.path.realpath(folder):
        raise NCAPluginError(f"{text}: write the number of the iteration into it")
    print_rank_0(f"nca-plugin: warning: {text}: the run begins without it")


def _check_described(folder: Path) -> None:
    """Refuse a checkpoint without `metadata.json`, for which Megatron would assume another format."""
    if (folder / ".metadata").exists() and not (folder / "metadata.json").exists():
        raise NCAPluginError(f"checkpoint {folder} lacks metadata.json: copy all of it again")


def _whether_there(path: Path) -> str:
    return "" if path.is_dir() else ": it does not exist"
