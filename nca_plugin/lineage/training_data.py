"""The description of a run's training data that its checkpoints store.

A resumed run compares it with its own data, and whoever has the checkpoint can tell what it was trained on. The
description consists of plain values under `KEY`: an attribute of Megatron's arguments, a field of Megatron-Bridge's
dataset configuration, or an entry in the state of NeMo 2's data module. Each stack saves these with every checkpoint.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from nca_plugin.errors import NCAPluginError

if TYPE_CHECKING:
    from nca_plugin.indexed.source import IndexedSource
    from nca_plugin.sources import Source

KEY: Final = "nca_plugin_trained_on"

#: Number of samples, from 0 on, that a fingerprint covers. A generated dataset may have fewer, but at least one.
_SAMPLES: Final = 4
#: Limits on what a checkpoint may say, since checkpoints are not trusted.
_MOST_STAGES: Final = 1000
_MOST_PARTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class DataPath:
    """One data path of a run.

    Attributes:
        path: the path as the run names it.
        weight: the weight in the blend as the run names it; None without weights.
        uri: the canonical URI of the source; None for data that no source made.
        fingerprint: a digest of the first samples of a source or generated dataset, or of a file of examples. Of other
            files their sizes; None where these are unknown, such as in object storage.
    """

    path: str
    weight: float | None
    uri: str | None
    fingerprint: str | None

    @property
    def name(self) -> str:
        """The name of the data in messages."""
        name = self.uri or self.path
        return name if self.weight is None else f"{self.weight:g} {name}"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of a run.

    Attributes:
        version: the version of nca-plugin.
        seq_length: number of input tokens of a sample.
        parts: the data paths of the blend, or the only data path.
        samples: number of samples until the run ended or changed its data; None while it continues, or if unknown.
    """

    version: str
    seq_length: int
    parts: tuple[DataPath, ...]
    samples: int | None = None

    @classmethod
    def of(cls, paths: Sequence[str], weights: Sequence[float] | None, seq_length: int) -> Self:
        """Return the training data of a run with these data paths.

        Raises:
            NCAPluginError: if the URI of a source is invalid, or a generated dataset cannot be read.
        """
        parts = (
            DataPath(path, weight, *_identity(path, seq_length))
            for path, weight in zip(paths, weights or itertools.repeat(None, len(paths)), strict=True)
        )
        return cls(version("nca-plugin"), seq_length, tuple(parts))

    @property
    def name(self) -> str:
        """The name of the data in messages."""
        return " ".join(part.name for part in self.parts)

    @property
    def sentence(self) -> str:
        """A sentence for people that says what the weights were trained on."""
        tokens = "" if self.samples is None else f"{self.samples * self.seq_length:,} tokens of "
        return f"Trained on {tokens}{self.name} (nca-plugin {self.version})."

    @property
    def has_source(self) -> bool:
        """Whether a source, or a generated dataset that a source made, is among the data."""
        return any(part.uri is not None for part in self.parts)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the weights of a checkpoint were trained on.

    Attributes:
        now: the data of the run that wrote the checkpoint; None in a start checkpoint.
        earlier: the data of earlier runs, the oldest first.
    """

    now: TrainingData | None
    earlier: tuple[TrainingData, ...] = ()

    def stored(self) -> dict[str, Any]:
        """Return the lineage as plain values for a checkpoint: dicts, lists, numbers and strings."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_stored(cls, stored: Any) -> Self:
        """Return the lineage from the values of `stored`. Raises `NCAPluginError` for other values."""
        try:
            if len(stored["earlier"]) > _MOST_STAGES:
                raise ValueError("more stages than a run has")
            return cls(
                None if stored["now"] is None else _from_stored(stored["now"]),
                tuple(map(_from_stored, stored["earlier"])),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise NCAPluginError(
                f"what the checkpoint says of its data cannot be read: {str(error)[:100]!r}"
            ) from error

    def ended(self, samples: int | None) -> "Lineage":
        """Return the lineage of a new run from these weights, whose own run ended after `samples` samples."""
        if self.now is None:
            return self
        return Lineage(None, (*self.earlier, replace(self.now, samples=samples)))


def _from_stored(values: Any) -> TrainingData:
    if len(values["parts"]) > _MOST_PARTS:
        raise ValueError("more parts than a blend has")
    data = TrainingData(**{**values, "parts": tuple(DataPath(**part) for part in values["parts"])})
    for value, kinds in (
        *((data.version, str), (data.seq_length, int), (data.samples, int | None)),
        *((text, str) for part in data.parts for text in (part.path,)),
        *((text, str | None) for part in data.parts for text in (part.uri, part.fingerprint)),
        *((part.weight, int | float | None) for part in data.parts),
    ):
        if not isinstance(value, kinds) or (isinstance(value, str) and not value.isprintable()):
            raise TypeError(f"a {type(value).__name__} in the wrong place")
    return data


def _identity(path: str, seq_length: int) -> tuple[str | None, str | None]:
    """Return the URI and the fingerprint of a data path."""
    # Only a training run needs fingerprints. A command that moves weights must not import and compile the generators.
    from nca_plugin.indexed.source import IndexedSource, is_generated
    from nca_plugin.sources import is_source, parse

    if is_generated(path):
        dataset = IndexedSource(path)
        return dataset.uri, fingerprint(dataset, seq_length, range(min(_SAMPLES, dataset.num_documents)))
    if is_source(path):
        # The path may name any split, but a run trains on the train split.
        source = parse(path).for_split("train")
        return source.uri, fingerprint(source, seq_length)
    if Path(path).is_file():
        # This is a file of examples to fine-tune on, a few megabytes at most.
        return None, hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    return None, _sizes(path)


def fingerprint(source: "Source | IndexedSource", seq_length: int, indices: Iterable[int] = range(_SAMPLES)) -> str:
    """Return a digest of the tokens and loss masks of the samples `indices`, as 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for index in indices:
        sample = source.sample(index, seq_length)
        digest.update(sample.tokens.astype("<i4").tobytes())
        digest.update(sample.loss_mask.tobytes())
    return digest.hexdigest()


def _sizes(prefix: str) -> str | None:
    """Return the sizes of an indexed dataset's files. The files are not read, since every rank of a run asks."""
    try:
        return " + ".join(f"{Path(prefix + suffix).stat().st_size}" for suffix in (".bin", ".idx")) + " bytes"
    except OSError:
        return None
