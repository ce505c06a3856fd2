"""The types of tensors by PyTorch's names, and the numpy types that hold their values."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: An array of values, or of their bits if numpy has no such type.
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """A type of PyTorch.

    Attributes:
        name: PyTorch's name, such as "bfloat16".
        array: numpy's type of an array of such values, or of their bits if numpy has no such type.
    """

    name: str
    array: "np.dtype[Any]"

    def __setstate__(self, _: object) -> None:
        # All tensors share a type, so a pickle that names it must not change it.
        raise TypeError("a type has no state")

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    @property
    def is_drawable(self) -> bool:
        """Whether new values can be drawn in this type."""
        return self.name in ("float64", "float32", "float16", "bfloat16")

    def from_float32(self, values: NDArray[np.float32]) -> Values:
        """Return values in this type, rounded to the nearest, ties to even."""
        return _to_bfloat16(values) if self.name == "bfloat16" else values.astype(self.array, copy=False)

    def to_float32(self, values: Values) -> NDArray[np.float32]:
        """Return values of this type as float32."""
        if self.name != "bfloat16":
            return values.astype(np.float32, copy=False)
        return (values.astype(np.uint32) << 16).view(np.float32)


_ONE_BYTE: Final = ("uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPES: Final = {
    name: DType(name, np.dtype(array))
    for name, array in {
        **{name: name for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool")},
        **{name: name for name in ("uint16", "uint32", "uint64")},
        **dict.fromkeys(_ONE_BYTE, "uint8"),
        "bfloat16": "uint16",
        "complex64": "complex64",
        "complex128": "complex128",
    }.items()
}


def _to_bfloat16(values: NDArray[np.float32]) -> Values:
    """Return the upper 16 bits of finite values, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
