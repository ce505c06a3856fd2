"""What a dataset holds, and its manifest PREFIX.json, which lies beside PREFIX.bin, PREFIX.idx and PREFIX.next."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from nca_plugin.automata.complexity import deflate_fingerprint
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import IndexLayout, token_dtype
from nca_plugin.sources import Source

#: The suffixes of a dataset's files, in the order in which they get their final names. The manifest comes last.
SUFFIXES: Final = (".bin", ".next", ".idx", ".json")

#: The first bytes of every manifest.
MANIFEST_START: Final = b'{\n "format": "nca-plugin corpus",\n'

_CHECKSUM_START: Final = b',\n "manifest_xxh3_128": '
_END: Final = b"\n}\n"
_FORMAT_VERSION: Final = 1
_TOKENS_PER_BLOCK: Final = 1 << 20
# A block holds at least one document and is in memory as a whole.
_MAX_SEQ_LENGTH: Final = 1 << 24
# Megatron counts documents in int32.
_MAX_DOCUMENTS: Final = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """A whole dataset: document i holds the inputs of sample i, for i in 0 .. num_documents - 1.

    Attributes:
        uri: canonical URI of the source.
        seq_length: tokens of each document.
        vocab_size: ids are 0 .. vocab_size - 1.
        supervised: (start, stop) of each range of targets that count towards the loss, the same in every document.
    """

    uri: str
    seq_length: int
    vocab_size: int
    supervised: tuple[tuple[int, int], ...]
    num_documents: int

    @classmethod
    def from_source(cls, source: Source, num_tokens: int, seq_length: int) -> Self:
        """Return the smallest dataset of at least `num_tokens` tokens.

        Raises:
            NCAPluginError: no tokens, more documents than Megatron can count, or a length that the source refuses.
        """
        if seq_length > _MAX_SEQ_LENGTH:
            raise NCAPluginError(f"sequence length {seq_length}: must be at most {_MAX_SEQ_LENGTH}")
        source.check_seq_length(seq_length)
        num_documents = -(-num_tokens // seq_length)
        if not 1 <= num_documents <= _MAX_DOCUMENTS:
            raise NCAPluginError(
                f"{num_tokens:,} tokens make {num_documents:,} documents of {seq_length:,}: must be 1 .. 2^31 - 1, "
                "which Megatron can count; write several datasets, or take a longer --seq-length"
            )
        return cls(
            uri=source.uri,
            seq_length=seq_length,
            vocab_size=source.vocab_size,
            supervised=_runs(source.sample(0, seq_length).loss_mask),
            num_documents=num_documents,
        )

    @property
    def dtype(self) -> str:
        return token_dtype(self.vocab_size)

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Whether target i of a document counts towards the loss, bool [seq_length]."""
        mask = np.zeros(self.seq_length, np.bool_)
        for start, stop in self.supervised:
            mask[start:stop] = True
        return mask

    @property
    def block_documents(self) -> int:
        """Documents per block, about a million tokens. A block is the unit of checksums, resuming and shards."""
        return max(1, _TOKENS_PER_BLOCK // self.seq_length)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_documents // self.block_documents)


@dataclass(frozen=True, slots=True)
class Shard:
    """Blocks first_block .. stop_block - 1 of a dataset, which may be all of them."""

    spec: DatasetSpec
    first_block: int
    stop_block: int

    @classmethod
    def numbered(cls, spec: DatasetSpec, number: int, count: int) -> Self:
        """Return shard `number` of 1 .. `count`. Raises `NCAPluginError` if it would be empty."""
        if not 1 <= number <= count:
            raise NCAPluginError(f"shard {number}/{count}: must be i/N with i in 1 .. N")
        if count > spec.num_blocks:
            raise NCAPluginError(
                f"shard {number}/{count}: the dataset has {spec.num_blocks} blocks of {spec.block_documents:,} "
                f"documents, so at most {spec.num_blocks} shards"
            )
        return cls(spec, (number - 1) * spec.num_blocks // count, number * spec.num_blocks // count)

    @property
    def first_document(self) -> int:
        return self.first_block * self.spec.block_documents

    @property
    def stop_document(self) -> int:
        return min(self.stop_block * self.spec.block_documents, self.spec.num_documents)

    @property
    def num_documents(self) -> int:
        return self.stop_document - self.first_document

    @property
    def supervised_tokens(self) -> int:
        """The number of targets that count towards the loss."""
        return self.num_documents * sum(stop - start for start, stop in self.spec.supervised)

    @property
    def num_blocks(self) -> int:
        return self.stop_block - self.first_block

    @property
    def layout(self) -> IndexLayout:
        return IndexLayout(self.num_documents, self.spec.seq_length, self.spec.dtype)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes in bytes of .bin, .next and .idx."""
        tokens = self.num_documents * self.layout.document_bytes
        return {".bin": tokens, ".next": tokens // self.spec.seq_length, ".idx": self.layout.size}

    def documents(self, block: int) -> range:
        """Return the documents of a block, counted from the start of the shard."""
        start = block * self.spec.block_documents
        return range(start, min(start + self.spec.block_documents, self.num_documents))

    def num_tokens(self, block: int) -> int:
        """Return the number of tokens in a block."""
        return len(self.documents(block)) * self.spec.seq_length


@dataclass(frozen=True, slots=True)
class Origin:
    """The versions that wrote a dataset.

    Attributes:
        versions: version by package; several joined by "and", if its shards were written by different ones.
        deflate: fingerprint of the deflate library that scored the automata.
    """

    versions: dict[str, str]
    deflate: str

    @classmethod
    def here(cls) -> Self:
        """Return the versions in this process."""
        versions = {package: version(package) for package in ("nca-plugin", "numba", "numpy")}
        return cls(versions, deflate_fingerprint())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the files of a dataset or of one shard.

    Attributes:
        bin_digests: digest of each block of the .bin.
        next_digests: digest of each block of the .next.
        idx_digest: digest of the .idx.
    """

    shard: Shard
    origin: Origin
    bin_digests: tuple[str, ...]
    next_digests: tuple[str, ...]
    idx_digest: str

    @property
    def summary(self) -> str:
        """One line for the user."""
        shard, spec = self.shard, self.shard.spec
        of_all = "" if shard.num_documents == spec.num_documents else f" of {spec.num_documents:,}"
        return (
            f"{shard.num_documents:,}{of_all} documents of {spec.seq_length:,} tokens, "
            f"{shard.num_documents * spec.seq_length:,} in all, {shard.supervised_tokens:,} targets supervised, "
            f"ids 0 .. {spec.vocab_size - 1:,} as {spec.dtype}"
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of the manifest file. Equal manifests give equal bytes."""
        shard, spec, sizes = self.shard, self.shard.spec, self.shard.sizes
        content = {
            "format": "nca-plugin corpus",
            "format_version": _FORMAT_VERSION,
            "uri": spec.uri,
            "seq_length": spec.seq_length,
            "vocab_size": spec.vocab_size,
            "dtype": spec.dtype,
            "supervised_targets": [f"{start}:{stop}" for start, stop in spec.supervised],
            "documents": {
                "first": shard.first_document,
                "stop": shard.stop_document,
                "of": spec.num_documents,
                "per_block": spec.block_documents,
            },
            "input_tokens": shard.num_documents * spec.seq_length,
            "supervised_tokens": shard.supervised_tokens,
            "versions": self.origin.versions,
            "deflate": self.origin.deflate,
            "bin": {"bytes": sizes[".bin"], "blocks_xxh3_128": list(self.bin_digests)},
            "next": {"bytes": sizes[".next"], "blocks_xxh3_128": list(self.next_digests)},
            "idx": {"bytes": sizes[".idx"], "xxh3_128": self.idx_digest},
        }
        return _with_checksum(_text(content))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Self:
        """Return the manifest in `data`, read from file `name`. Raises `NCAPluginError` if it is damaged or not one."""
        if not data.startswith(MANIFEST_START):
            raise NCAPluginError(f"{name} is not the manifest of a dataset that nca-plugin wrote")
        altered = NCAPluginError(f"{name} is damaged: restore it, or write the dataset again")
        try:
            content = json.loads(data)
            if content["format_version"] > _FORMAT_VERSION:
                raise NCAPluginError(
                    f"{name} has format version {content['format_version']}, but this nca-plugin reads at most "
                    f"{_FORMAT_VERSION}: update nca-plugin"
                )
            if data != _with_checksum(data.rpartition(_CHECKSUM_START)[0] + _END):
                raise altered
            return cls._from_content(content)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise altered from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Self:
        spec = DatasetSpec(
            uri=content["uri"],
            seq_length=content["seq_length"],
            vocab_size=content["vocab_size"],
            supervised=tuple(_run(text) for text in content["supervised_targets"]),
            num_documents=content["documents"]["of"],
        )
        first = content["documents"]["first"] // spec.block_documents
        digests, next_digests = (tuple(content[file]["blocks_xxh3_128"]) for file in ("bin", "next"))
        return cls(
            shard=Shard(spec, first, first + len(digests)),
            origin=Origin(content["versions"], content["deflate"]),
            bin_digests=digests,
            next_digests=next_digests,
            idx_digest=content["idx"]["xxh3_128"],
        )


def digest(data: bytes | memoryview | NDArray[Any]) -> str:
    """Return the 128-bit XXH3 of `data` in hexadecimal. It detects damage, not forgery."""
    return xxhash.xxh3_128_hexdigest(data)


def _runs(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of each run of true values."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _run(text: str) -> tuple[int, int]:
    start, stop = map(int, text.split(":"))
    return start, stop


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _with_checksum(text: bytes) -> bytes:
    """Return the JSON text of an object with its own checksum added as the last entry."""
    return text.removesuffix(_END) + _CHECKSUM_START + f'"{digest(text)}"'.encode() + _END
