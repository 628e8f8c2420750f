"""The handler of SIGBUS, compiled: where a guarded file was cut, there are zeros instead.

A signal handler must not run Python. Importing this module needs numba; see `mapping_guard` for
who may.
"""

from typing import no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, types
from numba.extending import intrinsic

NUM_RANGES = 4096
"""Mappings that can be guarded at a time."""

HEADER = 3
"""Words before the ranges: how many are in use, the former action's address, the page size."""

RANGE = 3
"""Words of a range: its start, its stop (0 if it is not used), whether zeros were put there."""

STATE = np.zeros(HEADER + RANGE * NUM_RANGES, dtype=np.int64)
"""What the handler shares with Python: the header, then the ranges."""

_SYMBOL = "safemerge_guarded_mappings"
_FIXED_PRIVATE_ANONYMOUS, _READ_WRITE, _SIGBUS = 0x32, 3, 7
_ADDRESS = 2
"""Word of siginfo_t that holds the address, on 64-bit Linux."""

# NOTE: by symbol, so that the compiled handler can be kept on disk for other processes.
binding.add_symbol(_SYMBOL, STATE.ctypes.data)
_mmap = types.ExternalFunction(
    "mmap", types.intp(types.intp, types.intp, types.int32, types.int32, types.int32, types.intp)
)
_sigaction = types.ExternalFunction("sigaction", types.int32(types.int32, types.intp, types.intp))


@intrinsic
@no_type_check
def _state(_):
    """The address of `STATE`."""

    def code(context, builder, *__):
        found = builder.module.globals.get(_SYMBOL)
        if found is None:
            found = ir.GlobalVariable(builder.module, context.get_value_type(types.int64), _SYMBOL)
            found.linkage = "external"
        return found

    return types.CPointer(types.int64)(), code


@cfunc(types.void(types.int32, types.CPointer(types.int64), types.intp), cache=True)
@no_type_check
def on_bus_error(_signal, info, _context):
    """Put zeros from the missing page to the end of its mapping, or leave it to the former."""
    state = _state()
    at = info[_ADDRESS]
    for i in range(state[0]):
        place = HEADER + RANGE * i
        start, stop = state[place], state[place + 1]
        if start <= at < stop:
            state[place + 2] = 1
            page = at & -state[2]
            _mmap(page, stop - page, _READ_WRITE, _FIXED_PRIVATE_ANONYMOUS, -1, 0)
            return
    # The access is tried again, and meets what was there before this handler.
    _sigaction(_SIGBUS, state[1], 0)
