"""Compiled conversions: floats of two and four bytes by address, random words, fused sums.

Importing this module needs numba; see `safemerge.merge.compiled`.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from safemerge.merge.compiled.code import BFLOAT16, FLOAT32
from safemerge.merge.mask import ROUNDS

_INT32, _FLOAT = ir.IntType(32), ir.FloatType()


@intrinsic
@no_type_check
def _pointer(_, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
@no_type_check
def _of_bfloat16(_, bits):
    def generate(context, builder, signature, arguments):
        wide = builder.zext(arguments[0], _INT32)
        return builder.bitcast(builder.shl(wide, ir.Constant(_INT32, 16)), _FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
@no_type_check
def _of_float16(_, bits):
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), _FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
@no_type_check
def _to_bfloat16(_, value):
    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], _INT32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_INT32, 16)), ir.Constant(_INT32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_INT32, 0x7FFF)))
        # NOTE: rounding could carry a NaN into the sign; one with few bits set stays NaN.
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        safe = builder.select(is_nan, ir.Constant(_INT32, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(safe, ir.Constant(_INT32, 16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
@no_type_check
def _to_float16(_, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
@no_type_check
def bits_of(_, value):
    """The bits of a float32, as an integer."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _INT32)

    return types.int32(types.float32), generate


@intrinsic
@no_type_check
def multiply_add(_, factor, other, addend):
    """Multiply and add, rounded once."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
@no_type_check
def random_word(_, counter, second):
    """The random word of `mask` for a counter: first key word plus flat index."""

    def generate(context, builder, signature, arguments):
        word = arguments[0]
        for at, (multiplier, shift) in enumerate(ROUNDS):
            if at == 1:
                word = builder.add(word, arguments[1])
            word = builder.xor(word, builder.lshr(word, ir.Constant(_INT32, shift)))
            word = builder.mul(word, ir.Constant(_INT32, multiplier))
        return word

    return types.int32(types.int32, types.int32), generate


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def load(address, kind, at, count, out):
    """Read floats of any kind as float32."""
    if kind == FLOAT32:
        wide = carray(_pointer(address + 4 * at), (count,), np.float32)
        for i in range(count):
            out[i] = wide[i]
    elif kind == BFLOAT16:
        half = carray(_pointer(address + 2 * at), (count,), np.uint16)
        for i in range(count):
            out[i] = _of_bfloat16(half[i])
    else:
        half = carray(_pointer(address + 2 * at), (count,), np.uint16)
        for i in range(count):
            out[i] = _of_float16(half[i])


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def ranks_at(address, at, count):
    """The sixteen-bit numbers at an address, from an index on."""
    return carray(_pointer(address + 2 * at), (count,), np.uint16)


@intrinsic
@no_type_check
def seen_broken(_, seen, value):
    """Whether this float32, or one before it, is not finite: bits that are set once."""

    def generate(context, builder, signature, arguments):
        seen, value = arguments
        exponent = ir.Constant(_INT32, 0x7F800000)
        bits = builder.and_(builder.bitcast(value, _INT32), exponent)
        broken = builder.sext(builder.icmp_unsigned("==", bits, exponent), _INT32)
        return builder.or_(seen, broken)

    return types.int32(types.int32, types.float32), generate


@intrinsic
@no_type_check
def _seen_broken_half(_, seen, bits, exponent):
    def generate(context, builder, signature, arguments):
        seen, bits, exponent = arguments
        same = builder.icmp_unsigned("==", builder.and_(bits, exponent), exponent)
        return builder.or_(seen, builder.sext(same, ir.IntType(16)))

    return types.uint16(types.uint16, types.uint16, types.uint16), generate


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def store(address, kind, at, count, values):
    """Round and write; return whether an entry is not finite."""
    if kind == FLOAT32:
        wide = carray(_pointer(address + 4 * at), (count,), np.float32)
        broken = np.int32(0)
        for i in range(count):
            wide[i] = values[i]
            broken = seen_broken(broken, values[i])
        return broken != 0
    half = carray(_pointer(address + 2 * at), (count,), np.uint16)
    seen = np.uint16(0)
    if kind == BFLOAT16:
        for i in range(count):
            rounded = _to_bfloat16(values[i])
            half[i] = rounded
            seen = _seen_broken_half(seen, rounded, np.uint16(0x7F80))
    else:
        for i in range(count):
            rounded = _to_float16(values[i])
            half[i] = rounded
            seen = _seen_broken_half(seen, rounded, np.uint16(0x7C00))
    return seen != 0


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def subtract(address, kind, at, count, origin, out):
    """Write floats of any kind less an origin."""
    if kind == BFLOAT16:
        half = carray(_pointer(address + 2 * at), (count,), np.uint16)
        for i in range(count):
            out[i] = _of_bfloat16(half[i]) - origin[i]
        return
    load(address, kind, at, count, out)
    for i in range(count):
        out[i] -= origin[i]


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def accumulate(address, kind, at, count, origin, weight, first, total, scratch):
    """Add a weight times floats of any kind less an origin to a total; the first begins it."""
    if kind != BFLOAT16:
        subtract(address, kind, at, count, origin, scratch)
        if first:
            for i in range(count):
                total[i] = scratch[i] * weight
        else:
            for i in range(count):
                total[i] = multiply_add(scratch[i], weight, total[i])
        return
    half = carray(_pointer(address + 2 * at), (count,), np.uint16)
    if first:
        for i in range(count):
            total[i] = (_of_bfloat16(half[i]) - origin[i]) * weight
    else:
        for i in range(count):
            total[i] = multiply_add(_of_bfloat16(half[i]) - origin[i], weight, total[i])
