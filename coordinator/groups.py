"""Finding the error that matters inside the exception groups that trio's nurseries wrap around it."""

from __future__ import annotations

from typing import TypeVar

Wanted = TypeVar("Wanted", bound=BaseException)


def first_of(kind: type[Wanted], error: BaseException) -> Wanted | None:
    """`error` itself, or the first error of that kind inside it if it is a group; None when there is none."""
    if isinstance(error, kind):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if (found := first_of(kind, inner)) is not None:
                return found
    return None
