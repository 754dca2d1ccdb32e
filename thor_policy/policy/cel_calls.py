"""Calls from the CEL runtime into Python, without the leaks and the crash of its binding.

Owns the references that cel-expr-python 0.1.3 miscounts. It never releases the tuple of arguments of a Python
function, nor the result: each call would leak the texts, lists and maps that it was given. And it releases
None for each null that it returns, without having taken it: before Python 3.12, where None cannot be freed,
the process would end after some thousand nulls. Invariant: after a call of a function that
`callable_from_cel` made, nothing is held but the last result, one in each thread. A call fails if the rules'
budget is spent. Any thread may call.

Both run through functions of CPython itself: a callback of ctypes, and a call of `Py_DecRef` through it, take
0.3 us more, some sixty times in a decision.
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
#: How a C function is called (CPython's METH_VARARGS, METH_O): with a tuple of arguments, with one argument.
_VARARGS, _ONE = 0x0001, 0x0008
#: How a function shows itself. For each failure the binding takes this text, and never releases it.
_NAME = "function"


class _MethodDef(ctypes.Structure):
    """PyMethodDef of CPython (https://docs.python.org/3/c-api/structures.html)."""

    _fields_ = [
        ("ml_name", ctypes.c_char_p),
        ("ml_meth", ctypes.c_void_p),
        ("ml_flags", ctypes.c_int),
        ("ml_doc", ctypes.c_char_p),
    ]


def _method(name: str, flags: int) -> _MethodDef:
    """A function of CPython's C interface as a method of the object that is its first argument."""
    address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
    return _MethodDef(name.encode(), address, flags, None)


#: Calls its object with the tuple of arguments itself, of which Python would make a copy.
_CALL = _method("PyObject_CallOneArg", _VARARGS)
#: Gives an item of its object, a dict, with no reference to it: who drops that result drops a reference.
_GET = _method("PyDict_GetItem", _ONE)
_bound = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


class _Failed:
    """What a failed call returns: no CEL type takes it, so that the runtime makes an error of it."""


_FAILED = _Failed()


class _Held:
    """What the last call of a thread gave, and its error.

    `drop(KEY)` drops a reference to `item[KEY]`. `owed`: the binding has taken the result that is there.
    """

    __slots__ = ("drop", "error", "item", "owed")

    def __init__(self) -> None:
        self.item: dict[str, Any] = {}
        self.drop: Callable[[str], object] = _bound(ctypes.byref(_GET), self.item, None)
        self.owed = False
        self.error = ""

    def __del__(self) -> None:  # at the end of the thread
        if self.owed:
            self.owed = False
            self.drop("")


class _Thread(threading.local):
    def __init__(self) -> None:
        self.held = _Held()


_thread = _Thread()


def callable_from_cel(function: Callable[..., Any]) -> Any:
    """The function as the implementation of an overload. An exception becomes an error of the expression."""

    def call(arguments: tuple[Any, ...]) -> Any:
        result: Any = _FAILED
        held = _thread.held
        try:
            limit = current.budget  # `budget.check`, written out: it stands before each call
            if limit is not None and limit.now_ns() >= limit.next_look_ns:
                limit.check()
            result = function(*arguments)
        except Exception as error:
            held.error = str(error)
        # `owed` goes before the reference does: an interrupt between them may leak it, never drop it twice
        if held.owed:
            held.owed = False
            held.drop("")
        held.item[""] = arguments
        held.drop("")
        held.item[""] = result
        held.owed = True
        return result

    native = _bound(ctypes.byref(_CALL), call, None)
    return type("Function", (), {"__call__": native, "__repr__": lambda _: _NAME})()


def error_of(message: str) -> str:
    """The runtime's error message; that of the Python function instead, if one failed in this thread."""
    return _thread.held.error if f"'': {_Failed.__name__}." in message else message


def keep_none() -> None:
    """Make None last: add references to it that the binding may release."""
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += _NULLS


keep_none()
