"""Calls from the CEL runtime into Python, without the leaks and the crash of its binding.

Owns the references that cel-expr-python 0.1.3 miscounts. It never releases the tuple of arguments of a Python
function, nor the result: each call would leak the texts, lists and maps that it was given. And it releases
None for each null that it returns, without having taken it: before Python 3.12, where None cannot be freed,
the process would end after some thousand nulls. Invariant: after a call of a function that
`callable_from_cel` made, nothing is held but the last result, one in each thread. A call fails if the rules'
budget is spent. Any thread may call.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

from thor_policy.policy.budget import current

#: References to None that no run of the daemon can use up: 2**60 nulls.
_NULLS = 1 << 60
#: A C function that gets the tuple of arguments itself, not a copy (CPython's METH_VARARGS).
_VARARGS = 0x0001


class _MethodDef(ctypes.Structure):
    """PyMethodDef of CPython (https://docs.python.org/3/c-api/structures.html)."""

    _fields_ = [
        ("ml_name", ctypes.c_char_p),
        ("ml_meth", ctypes.c_void_p),
        ("ml_flags", ctypes.c_int),
        ("ml_doc", ctypes.c_char_p),
    ]


class _Failed:
    """What a failed call returns: no CEL type takes it, so that the runtime makes an error of it."""


#: It returns an address: ctypes would add a reference to an object, which nobody would release.
_FUNCTION = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.py_object)
_release = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_DecRef", ctypes.pythonapi))
_new_function = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p
)(("PyCFunction_NewEx", ctypes.pythonapi))
_FAILED = _Failed()
#: How a function shows itself. For each failure the binding takes this text, and never releases it.
_NAME = "function"
_last = threading.local()


def callable_from_cel(function: Callable[..., Any]) -> Any:
    """The function as the implementation of an overload. An exception becomes an error of the expression."""

    def call(_self: int, arguments: tuple[Any, ...]) -> int:
        result: Any = _FAILED
        try:
            limit = current.budget  # `budget.check`, written out: it stands before each call
            if limit is not None and limit.now_ns() >= limit.next_look_ns:
                limit.check()
            result = function(*arguments)
        except Exception as error:
            _last.error = str(error)
        _last.result = result
        _release(arguments)
        return id(result)

    pointer = _FUNCTION(call)
    definition = _MethodDef(b"function", ctypes.cast(pointer, ctypes.c_void_p).value, _VARARGS, None)
    native = _new_function(ctypes.byref(definition), (pointer, definition), None)  # which keeps both alive
    return type("Function", (), {"__call__": native, "__repr__": lambda _: _NAME})()


def error_of(message: str) -> str:
    """The runtime's error message; that of the Python function instead, if one failed in this thread."""
    return str(_last.error) if f"'': {_Failed.__name__}." in message else message


def keep_none() -> None:
    """Make None last: add references to it that the binding may release."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += _NULLS


keep_none()
