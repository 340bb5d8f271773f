"""Renders chat templates, a checkpoint's own small programs, with a budget.

Jinja's sandbox stops a template from running Python and reading files. But nested loops may run for
days, and a string may double until memory is full, so each rendering has a budget here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache, wraps
from typing import Any

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from llama_index_gap.models.base import ModelError

_MOST_SOURCE = 2**20
_BUDGET = 2**24  # characters; a step of a loop costs the length of the whole template
_TIMES = 64  # how often a template may read its whole input
_LEAST_STEP = 1024
_MOST_INT = 10**5
_MOST_ITEMS = 2**17
_MOST_BITS = 10_000
_WIDTH = re.compile(r"\d{5,}")
# Functions whose result may be longer than all their arguments together.
_MULTIPLIES = {
    *("center", "expandtabs", "format", "format_map", "indent", "join"),
    *("ljust", "replace", "rjust", "translate", "xmlattr"),
}
_KEPT: dict[str, str] = {}
_INSTALLING = threading.Lock()


def keep_within_budget(templates: str | Mapping[str, str] | None, name: str) -> None:
    """Make transformers render these templates with a budget from now on.

    Args:
        templates: the ``chat_template`` of a tokenizer or a processor.
        name: the checkpoint, for the message.

    Raises:
        ModelError: (when a template is rendered) it runs for too long, or its text is too long.
    """
    if not templates:
        return
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    texts = [templates] if isinstance(templates, str) else map(str, templates.values())
    with _INSTALLING:
        _KEPT.update(dict.fromkeys(texts, name))
        plain = module._compile_jinja_template
        if getattr(plain, "keeps_within_budget", False):
            return

        def compile_template(template: str) -> Any:
            return _compiled(template, plain) if template in _KEPT else plain(template)

        compile_template.keeps_within_budget = True  # type: ignore[attr-defined]
        module._compile_jinja_template = compile_template


@cache
def _compiled(source: str, plain: Callable[[str], Template]) -> Template:
    name = _KEPT[source]
    if len(source) > _MOST_SOURCE:
        raise ModelError(
            f"{name}: its chat template has {len(source):,} characters, more than "
            f"{_MOST_SOURCE:,}; download the checkpoint again"
        )
    theirs = plain("").environment  # its filters and functions
    sandbox = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[type(each) for each in theirs.extensions.values()],
    )
    sandbox.model, sandbox.step = name, max(len(source), _LEAST_STEP)
    sandbox.globals.update({key: each for key, each in theirs.globals.items() if key != "lipsum"})
    sandbox.filters.update(
        {key: sandbox.counting(key, each) for key, each in theirs.filters.items()}
    )
    return sandbox.from_string(source)


class _Template(Template):
    def new_context(self, vars: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Set the budget; all ways to render call this first."""
        sandbox: Any = self.environment
        sandbox.budget.left = _BUDGET + _TIMES * sandbox.size((vars or {}).get("messages"), 2**30)
        return super().new_context(vars, *args, **kwargs)


class _Budget(threading.local):
    left = _BUDGET


class _Counting(NodeTransformer):
    """Send loops, and all that copies or compares texts and lists, through counting filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja's name)
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not supported", node.lineno)
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, "counted_steps")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [self._filtered(each, "counted") for each in node.nodes]
        return self._filtered(node, "counted")

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filtered(node, "counted")

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filtered(node, "counted") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filtered(node, "counted") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._filtered(node.expr, "counted")
        for operand in node.ops:
            operand.expr = self._filtered(operand.expr, "counted")
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = self._filtered(node.node, "counted")
        return node

    @staticmethod
    def _filtered(node: Any, name: str) -> nodes.Filter:
        place: Any = {"lineno": node.lineno, "environment": node.environment}
        return nodes.Filter(node, name, [], [], None, None, **place)


class _Sandbox(ImmutableSandboxedEnvironment):
    template_class = _Template
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    model: str
    step: int

    def __init__(self, **settings: Any) -> None:
        self.budget = _Budget()
        super().__init__(**settings, finalize=self._counted)
        self.filters |= {"counted": self._counted, "counted_steps": self._steps}

    def _parse(self, *args: Any, **kwargs: Any) -> nodes.Template:
        parsed: nodes.Template = _Counting().visit(super()._parse(*args, **kwargs))
        return parsed

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check an operation whose result may be larger than its operands; Jinja calls this."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if numbers and isinstance(left, int) and isinstance(right, int):
            many = abs(right) if operator == "**" else 1
            if left.bit_length() * many + right.bit_length() > _MOST_BITS:
                self._give_up()
        elif operator == "*" and not numbers:
            self._multiply([left, right])
        elif operator == "%" and isinstance(left, str) and (_WIDTH.search(left) or "*" in left):
            self._give_up()
        return self._counted(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Check a call of a function, a method or a macro; Jinja calls this."""
        __self._spend(__self.step)
        owner = getattr(__obj, "__self__", None)
        __self._check(getattr(__obj, "__name__", ""), [owner, *args, *kwargs.values()])
        return __self._counted(super().call(__context, __obj, *args, **kwargs))

    def counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a filter count the size of its result."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._check(name, [*args, *kwargs.values()])
            return self._counted(function(*args, **kwargs))

        return counted

    def size(self, value: Any, most: int | None = None) -> int:
        """Count the characters of a text, or of all texts in a list, up to ``most``."""
        most = self.budget.left if most is None else most
        total, items, rest = 0, 0, [value]
        while rest and total <= most:
            each, items = rest.pop(), items + 1
            total += len(each) if isinstance(each, str | bytes) else 1
            if items > _MOST_ITEMS:
                return most + 1
            if isinstance(each, Namespace):
                each = each._Namespace__attrs
            if isinstance(each, dict):
                rest += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple | set):
                rest += each
        return total

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check a use of ``str.format``; Jinja calls this."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDTH.search(value.__self__):
            self._give_up()
        return wrapped

    def _check(self, name: str, values: list[Any]) -> None:
        self._spend(sum(map(self.size, values)))
        if any(type(each) is int and abs(each) > _MOST_INT for each in values):
            self._give_up()
        if name in {"format", "format_map"} and any(
            isinstance(each, str) and _WIDTH.search(each) for each in values
        ):
            self._give_up()
        if name in _MULTIPLIES:
            known = [each for each in values if isinstance(each, str | list | tuple | dict | int)]
            self._multiply([*known[:1], *known[2:]] if name == "replace" else known)

    def _multiply(self, values: list[Any]) -> None:
        product = 1
        for value in values:
            product *= max(1, abs(value) if isinstance(value, int) else self.size(value))
        if product > self.budget.left:
            self._give_up()

    def _counted(self, value: Any) -> Any:
        self._spend(self.size(value))
        return self._steps(value) if isinstance(value, Iterator) else value

    def _steps(self, values: Any) -> Iterator[Any]:
        for value in values:
            self._spend(self.step)
            yield value

    def _spend(self, amount: int) -> None:
        self.budget.left -= amount
        if self.budget.left < 0:
            self._give_up()

    def _give_up(self) -> None:
        raise ModelError(
            f"{self.model}: its chat template does not end, or its text is too long; "
            "download the checkpoint again, or choose another"
        )
