"""Vectors of 16 float32 or 32-bit integers for numba functions.

LLVM compiles them to the widest registers of the processor: one of AVX-512, two of AVX2, four of SSE2. Lanes are
computed independently and nothing is contracted, so the width does not change a bit. Loops that numba vectorises by
itself do not need this module.

Indices count elements of a contiguous array and are not checked.
"""

import operator
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

LANES: Final = 16

_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)


class VectorType(types.Type):
    """The numba type of a vector of `LANES` elements."""

    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name)
        self.element = element
        self.llvm = ir.VectorType(element, LANES)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


float32x16: Final = VectorType("float32x16", ir.FloatType())
int32x16: Final = VectorType("int32x16", _I32)
mask16: Final = VectorType("mask16", ir.IntType(1))

# Vectors of integers have no sign, because none of their operations needs one.
_BY_ELEMENT: Final = {types.float32: float32x16, types.int32: int32x16, types.uint32: int32x16}


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, pointee: ir.Type) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def _splat(builder: Any, value: Any, vector: VectorType) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


@intrinsic
def load(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Return `array[index : index + 16]` of a float32, int32 or uint32 array."""
    vector = _BY_ELEMENT[array.dtype]

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        address = _address(context, builder, signature.args[0], args[0], args[1], vector.llvm)
        return builder.load(address, align=4)

    return vector(array, types.uint64), generate


@intrinsic
def store(typingctx, array, index, vector):  # type: ignore[no-untyped-def]
    """Write `vector` to `array[index : index + 16]`."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        address = _address(context, builder, signature.args[0], args[0], args[1], vector.llvm)
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.uint64, vector), generate


@intrinsic
def broadcast(typingctx, value):  # type: ignore[no-untyped-def]
    """Return the vector whose lanes are all `value`, a float32, int32 or uint32."""
    vector = _BY_ELEMENT[value]

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _splat(builder, args[0], vector)

    return vector(value), generate


@intrinsic
def select(typingctx, mask, yes, no):  # type: ignore[no-untyped-def]
    """Return `yes` in the lanes where `mask` is set, `no` elsewhere."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.select(*args)

    return yes(mask16, yes, yes), generate


@intrinsic
def multiply_wide(typingctx, a, b):  # type: ignore[no-untyped-def]
    """Return the upper and the lower halves of the 64-bit products of unsigned lanes."""
    wide = ir.VectorType(_I64, LANES)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        product = builder.mul(*(builder.zext(argument, wide) for argument in args))
        high = builder.lshr(product, ir.Constant(wide, [32] * LANES))
        halves = [builder.trunc(half, int32x16.llvm) for half in (high, product)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(int32x16, 2)(int32x16, int32x16), generate


@intrinsic
def bits(typingctx, mask):  # type: ignore[no-untyped-def]
    """Return the lanes of a mask as bits of a uint64, with lane 0 in the lowest bit."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), _I64)

    return types.uint64(mask16), generate


@intrinsic
def transpose(typingctx, array, out):  # type: ignore[no-untyped-def]
    """Write the transpose of `array`, float32 [16, 16] as 256 elements, to `out`."""
    eight = ir.VectorType(ir.FloatType(), 8)

    def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, 8), lanes))

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def address(argument: int, row: int, column: int) -> Any:
            index = ir.Constant(_I64, row * LANES + column)
            return _address(context, builder, signature.args[argument], args[argument], index, eight)

        # Four blocks of 8 x 8, each in three rounds of exchanges that are one instruction each on AVX2: pairs of rows
        # are interleaved, then pairs of pairs, then the halves of the register.
        for top in (0, 8):
            for left in (0, 8):
                rows = [builder.load(address(0, top + k, left), align=4) for k in range(8)]
                for distance, low, high in (
                    (1, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
                    (2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
                    (4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
                ):
                    for k in range(8):
                        if k & distance == 0:
                            a, b = rows[k], rows[k + distance]
                            rows[k] = shuffle(builder, a, b, low)
                            rows[k + distance] = shuffle(builder, a, b, high)
                # The first two rounds leave bits 0 and 1 of the column number swapped.
                for k, row in enumerate((0, 2, 1, 3, 4, 6, 5, 7)):
                    builder.store(rows[row], address(1, left + k, top), align=4)
        return context.get_dummy_value()

    return types.void(array, out), generate


def _define_operator(symbol: Any, vector: VectorType, result: VectorType, emit: Any) -> None:
    @intrinsic
    def instruction(typingctx, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return emit(builder, *args)

        return result(vector, vector), generate

    @overload(symbol)
    def implementation(a, b):  # type: ignore[no-untyped-def]
        if a == vector and b == vector:
            return lambda a, b: instruction(a, b)
        return None


_define_operator(operator.add, float32x16, float32x16, lambda builder, a, b: builder.fadd(a, b))
_define_operator(operator.sub, float32x16, float32x16, lambda builder, a, b: builder.fsub(a, b))
_define_operator(operator.mul, float32x16, float32x16, lambda builder, a, b: builder.fmul(a, b))
_define_operator(operator.gt, float32x16, mask16, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define_operator(operator.add, int32x16, int32x16, lambda builder, a, b: builder.add(a, b))
_define_operator(operator.xor, int32x16, int32x16, lambda builder, a, b: builder.xor(a, b))
_define_operator(operator.eq, int32x16, mask16, lambda builder, a, b: builder.icmp_signed("==", a, b))
_define_operator(operator.ne, int32x16, mask16, lambda builder, a, b: builder.icmp_signed("!=", a, b))
