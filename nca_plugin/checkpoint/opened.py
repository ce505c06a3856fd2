"""An open checkpoint, whose parts are read when they are first needed and then kept."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.contents import Tensor
from nca_plugin.checkpoint.dtypes import Values
from nca_plugin.checkpoint.folders import (
    NEMO_CONTEXT,
    NEMO_MODEL,
    NEMO_WEIGHTS,
    RUN_CONFIG,
    TOKENIZER,
    find_checkpoint,
    read_mapping,
)
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy, read_legacy_state
from nca_plugin.checkpoint.metadata import TableOfContents
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.stored import Item
from nca_plugin.checkpoint.torch_dist import is_torch_dist, read_common_file, read_common_object, read_table
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.errors import NCAPluginError

_EMBEDDING: Final = "embedding.word_embeddings.weight"


class Checkpoint:
    """A checkpoint folder.

    Reading a part raises `NCAPluginError` if it is damaged, incomplete, or of an unknown format.

    Attributes:
        folder: the folder of the data files.
        root: the folder of the whole checkpoint. It differs from `folder` only in NeMo 2.
        stack: the stack that wrote the checkpoint: megatron, bridge or nemo.
        format: torch_dist or torch; None for a format that only Megatron may be able to read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._reading():
            self.format = "torch_dist" if is_torch_dist(folder) else "torch" if is_legacy(folder) else None
        self.root, self.stack = folder, "megatron"
        if (folder / RUN_CONFIG).is_file():
            self.stack = "bridge"
        elif folder.name == NEMO_WEIGHTS and (folder.parent / NEMO_CONTEXT).is_dir():
            self.root, self.stack = folder.parent, "nemo"

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._contents[0]

    @property
    def objects(self) -> dict[str, Item | None]:
        """Entries that are not tensors; None for the empty state of a module."""
        return self._contents[1]

    @property
    def names(self) -> list[str]:
        return [*self.tensors, *self.objects]

    def tensor(self, name: str) -> Values:
        """Return the values of a whole tensor."""
        return self.tensors[name].read()

    @cached_property
    def common_state(self) -> dict[str, Any] | None:
        """The state that is stored once for all ranks, such as the run's arguments and iteration; None without one."""
        with self._reading():
            if self.format == "torch":
                return read_legacy_state(self.folder)
            # As in Megatron, the file comes first. Without it, the table of contents has to be read.
            state = read_common_file(self.folder) if self.format else None
            return read_common_object(self.folder, self._table) if self.format and state is None else state

    @cached_property
    def model(self) -> ModelConfig:
        """The model's configuration, from the arguments or the configuration file that the checkpoint keeps."""
        with self._reading():
            values = self._model_values()
        if not isinstance(values, dict):
            raise NCAPluginError(f"checkpoint {self.root}: its configuration describes no model")
        return ModelConfig(values)

    @cached_property
    def embedding_rows(self) -> int | None:
        """Number of rows of the word embedding; None without one, or if the format is not `torch_dist`."""
        if self.format != "torch_dist":
            return None
        # NeMo 2 puts a module around the model.
        shapes = (self._table.shape(name) for name in (_EMBEDDING, f"module.{_EMBEDDING}"))
        return next((shape[0] for shape in shapes if shape), None)

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer that the run saved with the checkpoint; None if it saved none."""
        folder = self.folder / TOKENIZER
        with self._reading():
            # A tokenizer without files, such as the NullTokenizer of a source, leaves the folder empty.
            return folder if folder.is_dir() and any(folder.iterdir()) else None

    @cached_property
    def _table(self) -> TableOfContents:
        with self._reading():
            return read_table(self.folder)

    @cached_property
    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Item | None]]:
        tensors: dict[str, Tensor]
        objects: dict[str, Item | None]
        with self._reading():
            if self.format is None:
                raise NCAPluginError(_unknown(self.folder))
            if self.format == "torch":
                tensors, modules = read_legacy(self.folder, self.common_state or {})
                objects = dict(modules)
            else:
                tensors, items = self._table.entries()
                objects = dict(items)
        for name, tensor in tensors.items():
            if 0 in tensor.shape and parameter(name).role != "run":
                raise NCAPluginError(f"checkpoint {self.folder} is damaged: '{name}' has no values")
        return tensors, objects

    def _model_values(self) -> Any:
        if self.stack == "bridge":
            return read_mapping(self.folder / RUN_CONFIG).get("model")
        if self.stack == "nemo":
            return _nemo_model(self.root)
        args = (self.common_state or {}).get("args", Namespace())
        return vars(args) if isinstance(args, Namespace) else None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NCAPluginError(f"checkpoint {self.folder} cannot be read: {error}") from error


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`: a save folder, whose latest iteration is taken, or an iteration's folder.

    Raises:
        NCAPluginError: if there is no folder, or its tracker file names no checkpoint.
    """
    return Checkpoint(find_checkpoint(path))


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path` after reading all its parts but the values, so that errors show at once.

    Raises:
        NCAPluginError: if there is no complete checkpoint of a known format.
    """
    checkpoint = open_checkpoint(path)
    # The order decides which error a user sees.
    _ = checkpoint.tensors, checkpoint.common_state, checkpoint.model
    return checkpoint


def _unknown(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    if not found:
        return f"checkpoint {folder} is empty"
    if "metadata.json" in found:
        return f"checkpoint {folder} is of an unknown format, see metadata.json: save it with --ckpt-format torch_dist"
    if ".metadata" in found or any(name.endswith(".distcp") for name in found):
        return f"checkpoint {folder} is incomplete: metadata.json is missing, or it is no --ckpt-format torch_dist"
    iterations = [name for name in found if name.startswith("iter_")]
    if iterations:
        return f"checkpoint {folder} has no {TRACKER}: name one of its iterations, such as {folder / iterations[-1]}"
    return f"{folder} is no checkpoint: it holds {', '.join(found[:5])}"


def _nemo_model(root: Path) -> Any:
    file = root / NEMO_CONTEXT / NEMO_MODEL
    if not file.is_file():
        raise NCAPluginError(f"checkpoint {root}: {NEMO_CONTEXT}/{NEMO_MODEL} is missing, which describes the model")
    values = read_mapping(file)
    model = values.get("config", values)
    # If NeMo's configuration has a vocabulary size, it is the number of rows.
    return {**model, "should_pad_vocab": model.get("vocab_size") is None} if isinstance(model, dict) else model
