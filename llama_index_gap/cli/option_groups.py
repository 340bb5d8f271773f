"""Options that belong together, given to a command in place of one parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, get_type_hints

Command = Callable[..., None]
_Group = TypeVar("_Group")


def with_group(
    parameter: str,
    options: Callable[..., _Group],
    check: Callable[[_Group, dict[str, Any]], None] | None = None,
) -> Callable[[Command], Command]:
    """Give a command a group of options, in place of one of its parameters.

    Args:
        parameter: the command's, which takes what the options say.
        options: has the options as its parameters, and makes of them what the command takes.
        check: refuses what does not go together with the command's other arguments.
    """

    def decorated(command: Command) -> Command:
        own = inspect.signature(command).parameters.values()
        added = inspect.signature(options).parameters.values()
        hints = get_type_hints(command, include_extras=True)
        hints |= get_type_hints(options, include_extras=True)

        @wraps(command)
        def with_options(*args: Any, **given: Any) -> None:
            group = options(
                **{each.name: given.pop(each.name) for each in added if each.name in given}
            )
            if check is not None:
                check(group, given)
            command(*args, **{parameter: group}, **given)

        parameters: list[inspect.Parameter] = []
        for each in own:
            parameters += added if each.name == parameter else [each]
        # Typer reads both.
        setattr(  # noqa: B010
            with_options,
            "__signature__",
            inspect.Signature([each.replace(annotation=hints[each.name]) for each in parameters]),
        )
        with_options.__annotations__ = {each.name: hints[each.name] for each in parameters}
        del with_options.__wrapped__
        return with_options

    return decorated
