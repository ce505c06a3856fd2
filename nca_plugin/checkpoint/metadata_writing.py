"""Writes `.metadata` of a new `torch_dist` folder, see `metadata`, as a pickle of protocol 2, opcode by opcode.

Python's pickler would be slow: it looks for shared objects among hundreds of thousands that differ in a few numbers.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pickle import encode_long
from typing import Final

from nca_plugin.checkpoint import metadata
from nca_plugin.checkpoint.contents import Region
from nca_plugin.checkpoint.dtypes import DType
from nca_plugin.checkpoint.pickling import Reference, Size
from nca_plugin.checkpoint.stored import Item

_NONE: Final = b"N"
_FALSE: Final = b"\x89"


def dump_metadata(
    tensors: Sequence[tuple[str, DType, tuple[int, ...], Iterable[Region]]],
    objects: Sequence[str],
    places: Mapping[tuple[str, tuple[int, ...] | None], Item],
) -> bytes:
    """Return the bytes of a `.metadata` file.

    Args:
        tensors: name, type, shape and blocks of each tensor.
        objects: names of the objects.
        places: where the bytes of each block or object are, by its name and its first indices; None for an object.
    """
    new = _Pickle()
    layout = new.call(metadata.LAYOUT, new.text("torch.strided"))
    memory_format = new.call(metadata.MEMORY_FORMAT, _integer(0))
    tensor = new.form(metadata.TENSOR, "properties", "size", "chunks")
    chunk = new.form(metadata.CHUNK, "offsets", "sizes")
    index = new.form(metadata.INDEX, "fqn", "offset", "index")
    place = new.form(metadata.STORAGE, "relative_path", "offset", "length")
    entries = []
    for name, dtype, shape, regions in tensors:
        chunks = b"".join(
            [
                chunk % (new.size(tuple([a for a, _ in region])), new.size(tuple([b - a for a, b in region])))
                for region in regions
            ]
        )
        # Later versions of PyTorch also write strides, which earlier ones cannot read.
        state = (new.name(Reference("torch", dtype.name)), layout, _FALSE, memory_format, _FALSE)
        properties = new.empty(metadata.PROPERTIES) + b"(" + b"".join(state) + b"tb"
        entries.append(new.text(name) + tensor % (properties, new.size(shape), b"](" + chunks + b"e"))
    entries += [new.text(name) + new.empty(metadata.OBJECT) for name in objects]
    stored = [
        index % (new.text(name), _NONE if start is None else new.size(start), _NONE)
        + place % (new.text(item.file.name), _integer(item.offset), _integer(item.length))
        for (name, start), item in places.items()
    ]
    whole = new.form(
        metadata.METADATA, "state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version"
    )
    return new.done(whole % (_mapping(entries), _NONE, _mapping(stored), _NONE, _NONE))


class _Pickle:
    """A pickle that begins with all its texts and names, each once. The rest refers to them.

    Its methods return the opcodes that make a value.
    """

    def __init__(self) -> None:
        self._shared: dict[str | Reference, bytes] = {}
        self._definitions: list[bytes] = []
        self._sizes: dict[tuple[int, ...], bytes] = {}

    def text(self, text: str) -> bytes:
        """Return the opcodes of a text."""
        if text not in self._shared:
            encoded = text.encode("utf-8", "surrogatepass")
            self._share(text, b"X" + struct.pack("<I", len(encoded)) + encoded)
        return self._shared[text]

    def name(self, reference: Reference) -> bytes:
        """Return the opcodes of a class or function."""
        if reference not in self._shared:
            self._share(reference, f"c{reference.module}\n{reference.name}\n".encode())
        return self._shared[reference]

    def call(self, function: Reference, argument: bytes) -> bytes:
        """Return the opcodes of a call with one argument."""
        return self.name(function) + argument + b"\x85R"

    def size(self, numbers: tuple[int, ...]) -> bytes:
        """Return the opcodes of a `torch.Size`."""
        code = self._sizes.get(numbers)
        if code is None:
            code = self.name(Size.reference) + b"(" + b"".join(map(_integer, numbers)) + b"t\x85R"
            self._sizes[numbers] = code
        return code

    def empty(self, kind: Reference) -> bytes:
        """Return the opcodes of an object without attributes."""
        return self.name(kind) + b")\x81"

    def form(self, kind: Reference, *attributes: str) -> bytes:
        """Return the opcodes of an object, with `%b` in the places of its attributes."""
        # The number of a shared value may contain the byte of a percent sign.
        names = [self.text(name).replace(b"%", b"%%") + b"%b" for name in attributes]
        return self.empty(kind).replace(b"%", b"%%") + _mapping(names) + b"b"

    def done(self, value: bytes) -> bytes:
        """Return the pickle of a value."""
        return b"\x80\x02" + b"".join(self._definitions) + value + b"."

    def _share(self, key: str | Reference, code: bytes) -> None:
        number = struct.pack("<I", len(self._shared))
        # The value is put into the memo and taken from the stack.
        self._definitions.append(code + b"r" + number + b"0")
        self._shared[key] = b"j" + number


def _mapping(items: Iterable[bytes]) -> bytes:
    return b"}(" + b"".join(items) + b"u"


def _integer(number: int) -> bytes:
    if 0 <= number < 0x100:
        return b"K%c" % number
    if 0 <= number < 0x80000000:
        return b"J" + number.to_bytes(4, "little")
    encoded = encode_long(number)
    return b"\x8a%c" % len(encoded) + encoded
