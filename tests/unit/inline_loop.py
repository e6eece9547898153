"""Virtual time for code that gives work to threads: the work is done at once, it takes no time and the clock stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from swarm.net.clock import VirtualTimeLoop

_Result = TypeVar("_Result")


class InlineLoop(VirtualTimeLoop):
    """Has no threads."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


def run_inline(main: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `main`, in virtual time."""
    with asyncio.Runner(loop_factory=InlineLoop) as runner:
        return runner.run(main)
