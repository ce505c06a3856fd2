"""What a run trains on, in the words that its checkpoints keep.

A resumed run compares them with its own data, and whoever has the checkpoint can tell what made it. They are plain
values under `KEY`: an attribute of Megatron's arguments, a field of Megatron-Bridge's dataset configuration, an entry
of the state of NeMo 2's data module; each of them is stored with every checkpoint.
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

#: Samples that a source's fingerprint covers: 0, 1, ... A corpus has at least the first.
_SAMPLES: Final = 4
#: What a checkpoint says is not to be trusted.
_MOST_STAGES: Final = 1000
_MOST_PARTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class DataPath:
    """One data path of a run.

    Attributes:
        path: as the run names it.
        weight: in a blend, as the run names it; None without weights.
        uri: of the source, canonical; None for an indexed dataset of other origin.
        fingerprint: of the first samples of a source or a corpus, or of a file of examples; of other files their sizes,
            None where these cannot be told, such as in object storage.
    """

    path: str
    weight: float | None
    uri: str | None
    fingerprint: str | None

    @property
    def name(self) -> str:
        """What stands for the data in a message."""
        name = self.uri or self.path
        return name if self.weight is None else f"{self.weight:g} {name}"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of a run.

    Attributes:
        version: of nca-plugin.
        seq_length: inputs of a sample.
        parts: of the blend; one without a blend.
        samples: trained on until the run ended or changed its data; None while it goes on, or if nobody knows.
    """

    version: str
    seq_length: int
    parts: tuple[DataPath, ...]
    samples: int | None = None

    @classmethod
    def of(cls, paths: Sequence[str], weights: Sequence[float] | None, seq_length: int) -> Self:
        """Return that of a run with these data paths.

        Raises:
            NCAPluginError: a path that names no source, or a corpus that cannot be read.
        """
        parts = (
            DataPath(path, weight, *_identity(path, seq_length))
            for path, weight in zip(paths, weights or itertools.repeat(None, len(paths)), strict=True)
        )
        return cls(version("nca-plugin"), seq_length, tuple(parts))

    @property
    def name(self) -> str:
        """What stands for the data in a message."""
        return " ".join(part.name for part in self.parts)

    @property
    def sentence(self) -> str:
        """The sentence that says what weights were trained on."""
        tokens = "" if self.samples is None else f"{self.samples * self.seq_length:,} tokens of "
        return f"Trained on {tokens}{self.name} (nca-plugin {self.version})."

    @property
    def _short_name(self) -> str:
        return " ".join(replace(part, uri=part.uri and _short(part.uri)).name for part in self.parts)

    @property
    def has_source(self) -> bool:
        """Whether a source, or a corpus of one, is among the data."""
        return any(part.uri is not None for part in self.parts)

    def difference(self, other: "TrainingData") -> str | None:
        """Return in what other data differ from these, None if they give the same samples."""
        if self.seq_length != other.seq_length:
            return f"sequences of {other.seq_length} tokens rather than {self.seq_length}"
        if [part.weight for part in self.parts] != [part.weight for part in other.parts]:
            return f"{other._short_name} rather than {self._short_name}"
        for before, now in zip(self.parts, other.parts, strict=True):
            if before.uri != now.uri or (before.uri is None and before.fingerprint is None and before.path != now.path):
                return _difference(before.uri or before.path, now.uri or now.path)
            if None not in (before.fingerprint, now.fingerprint) and before.fingerprint != now.fingerprint:
                if before.uri is None:
                    return f"{now.path} of {now.fingerprint} rather than {before.fingerprint}"
                return (
                    f"{_short(before.uri)} with other samples (fingerprint {now.fingerprint} rather than "
                    f"{before.fingerprint}): "
                    f"nca-plugin {other.version} rather than {self.version}, or another deflate library"
                )
        return None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the weights of a checkpoint were trained on.

    Attributes:
        now: by the run that wrote it; None for the start of a run.
        earlier: before, the oldest first.
    """

    now: TrainingData | None
    earlier: tuple[TrainingData, ...] = ()

    def stored(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint: dicts, lists, numbers and texts."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_stored(cls, stored: Any) -> Self:
        """Return the lineage of what `stored` returned. Raises `NCAPluginError` for other values."""
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
        """Return that of weights whose run ended after so many samples: the start of another one."""
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


def _difference(before: str, now: str) -> str:
    """Return in what one data path differs from another; a source's has many options, most of them equal."""
    (name, old), (new_name, new) = (_options(path) for path in (before, now))
    if name != new_name or old.keys() != new.keys():
        return f"{_short(now)} rather than {_short(before)}"
    names = [key for key in new if old[key] != new[key]]
    changed, original = (", ".join(f"{key}={options[key]}" for key in names) for options in (new, old))
    return f"{name} with {changed} rather than {original}"


def _short(path: str) -> str:
    # As in `_identity`.
    from nca_plugin.sources import short_uri

    return short_uri(path)


def _options(path: str) -> tuple[str, dict[str, str]]:
    name, _, options = path.partition("?")
    return name, dict(option.partition("=")[::2] for option in options.split("&") if options)


def _identity(path: str, seq_length: int) -> tuple[str | None, str | None]:
    """Return the URI and the fingerprint of a data path."""
    # Only who trains makes samples: a command that moves weights loads no generator, which would be compiled.
    from nca_plugin.indexed.source import IndexedSource, is_generated
    from nca_plugin.sources import is_source, parse

    if is_generated(path):
        corpus = IndexedSource(path)
        return corpus.uri, fingerprint(corpus, seq_length, range(min(_SAMPLES, corpus.num_documents)))
    if is_source(path):
        # Whatever split the path names, that of a run's training data is train.
        source = parse(path).for_split("train")
        return source.uri, fingerprint(source, seq_length)
    if Path(path).is_file():
        # Examples to fine-tune on: a file of megabytes.
        return None, hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    return None, _sizes(path)


def fingerprint(source: "Source | IndexedSource", seq_length: int, indices: Iterable[int] = range(_SAMPLES)) -> str:
    """Return what tells samples from others: of their tokens and loss masks, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for index in indices:
        sample = source.sample(index, seq_length)
        digest.update(sample.tokens.astype("<i4").tobytes())
        digest.update(sample.loss_mask.tobytes())
    return digest.hexdigest()


def _sizes(prefix: str) -> str | None:
    """Return the sizes of an indexed dataset's files: every rank of a run asks for them, so nothing is read."""
    try:
        return " + ".join(f"{Path(prefix + suffix).stat().st_size}" for suffix in (".bin", ".idx")) + " bytes"
    except OSError:
        return None
