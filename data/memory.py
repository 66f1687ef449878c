"""Copying bytes at the speed of memory, which compiled code lacks: its own loops go byte by byte.

What `data.resample` keeps on disk holds a copy of this, and is not made anew when this file alone changes: delete
`data/__pycache__/*.nb?` then.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _copy_bytes(typing, source, start, count, target, at):
    """Copy `count` bytes of the array `source` from byte `start` on to byte `at` of `target`: contiguous, distinct."""

    def code(context, builder, signature, arguments):
        def pointer(kind, array, offset):
            data = context.make_array(kind)(context, builder, array).data
            return builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])

        source, start, count, target, at = arguments
        there = pointer(signature.args[3], target, at)
        cgutils.raw_memcpy(builder, there, pointer(signature.args[0], source, start), count, 1)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), code


copy_bytes: Any = intrinsic(_copy_bytes)
