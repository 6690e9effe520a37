"""The run-time check of signatures, for conftest.py's import hook."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

# As in PEP 484, an int may be given where a float is expected.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_checked: dict[tuple, Callable] = {}


def check(stub: Callable) -> Callable:
    """Returns `stub` with its arguments checked; alike ones share a checker.

    jaxtyping gives stubs: a function's signature with nothing inside. A nested
    function gets new ones at every call of what it is in, and each checker
    takes a millisecond to make.
    """
    code = stub.__code__
    key = (
        stub.__module__,
        stub.__qualname__,
        code.co_code,
        code.co_varnames,
        (code.co_argcount, code.co_kwonlyargcount, code.co_flags),
        tuple(stub.__annotations__.items()),
    )
    try:
        if key not in _checked:
            _checked[key] = _beartype(stub)
    except TypeError:  # An annotation that has no hash.
        return _beartype(stub)
    return _checked[key]
