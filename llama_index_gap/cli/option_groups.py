"""Groups of options, each of which replaces one parameter of a command."""

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
    """Replace a parameter of a command by a group of options.

    Args:
        parameter: the name of the parameter.
        options: takes the options as its parameters, and returns the value for the parameter.
        check: rejects a value that conflicts with the other arguments of the command.
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
        # Typer reads both the signature and the annotations.
        setattr(  # noqa: B010
            with_options,
            "__signature__",
            inspect.Signature([each.replace(annotation=hints[each.name]) for each in parameters]),
        )
        with_options.__annotations__ = {each.name: hints[each.name] for each in parameters}
        del with_options.__wrapped__
        return with_options

    return decorated
