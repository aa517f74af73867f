"""Coroutines run together, as one."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


async def together(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Runs all and returns their results in order. The first error cancels the others, and is raised as it is.

    A single coroutine is awaited in place: the common request pays for no task.
    """
    if len(coroutines) == 1:
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
