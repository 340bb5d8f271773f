"""Numbers, prices and dates in the cells of a table: a column has a type, or it stays text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from typing import TypeAlias

Value: TypeAlias = str | int | float

_LONGEST = 40
_SPACES = "'’ \u00a0\u202f"
_BODY = re.compile(rf"[0-9](?:[0-9.,{_SPACES}]*[0-9])?|\.[0-9]+")
_POINT = re.compile(rf"(?:[0-9]+|[0-9]{{1,3}}(?:[,{_SPACES}][0-9]{{3}})+)?(?:\.[0-9]+)?")
_COMMA = re.compile(rf"(?:[0-9]+|[0-9]{{1,3}}(?:[.{_SPACES}][0-9]{{3}})+)(?:,[0-9]+)?")
_SCIENTIFIC = re.compile(r"[+-]?[0-9](?:\.[0-9]+)?[eE][+-][0-9]{1,3}")
_LEADING_ZERO = re.compile(r"0[0-9]")
_MOST_DIGITS = 18  # an index compares integers of 64 bits
# The most used codes of ISO 4217, and how some currencies are abbreviated. Not every three capitals
# are a currency: "38 EUR" is a price, "38 CMS" is not.
_CURRENCIES = re.compile(
    "AED|ARS|AUD|BRL|CAD|CHF|CLP|CNY|COP|CZK|DKK|EGP|EUR|GBP|HKD|HUF|IDR|ILS|INR|JPY|KRW|KWD|MAD|"
    "MXN|MYR|NGN|NOK|NZD|PEN|PHP|PKR|PLN|QAR|RON|RUB|SAR|SEK|SGD|THB|TRY|TWD|UAH|USD|VND|ZAR|"
    r"kr\.?|zł|Kč|Ft|lei|S?Fr\.|Rs\.?|(?:US|R|C|A|CA|AU|NZ|HK|S)\$"
)
_DATE = re.compile(r"([0-9]{1,4})([-/.])([0-9]{1,2})\2([0-9]{1,4})")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?"
    r"(?: ?(?:Z|UTC|[+-][0-9]{2}:?[0-9]{2}))?"
)
_ORDERS = {"-": ("ymd", "dmy", "mdy"), "/": ("ymd", "dmy", "mdy"), ".": ("ymd", "dmy")}
_IN_WORDS = {"ymd": "year, month, day", "dmy": "day, month, year", "mdy": "month, day, year"}


class ColumnType:
    """Finds the type of one column from all of its cells, seen one after the other.

    Args:
        comma_separates: whether commas separate the file's cells. In such a file, ``3,5`` without a
            currency may be a list of two.
    """

    def __init__(self, *, comma_separates: bool) -> None:
        self._comma_separates = comma_separates
        self._cells = self._numbers = self._dates = 0
        self._not_a_number = self._not_a_date = ""
        self._point = self._comma = self._whole = True
        self._separated = self._both_separators = False
        self._currency: str | None = None
        self._problem = ""
        self._orders: set[tuple[str, str]] | None = None
        self._moment: str | None = None
        self._first_date = ""

    def see(self, cell: str, line: int) -> None:
        """Take the next cell that is not empty.

        Args:
            cell: its text.
            line: the number of its line.
        """
        cell = cell.strip()
        self._cells += 1
        where = f"line {line:,} has {cell[:_LONGEST]!r}"
        # After 1,000 cells, a type that fits fewer than half of them is given up.
        if self._cells < 1_000 or self._numbers * 2 >= self._cells:
            self._see_number(cell, where)
        if self._cells < 1_000 or self._dates * 2 >= self._cells:
            self._see_date(cell, where)

    def _see_number(self, cell: str, where: str) -> None:
        parts = _number_parts(cell)
        if parts is None:
            self._not_a_number = self._not_a_number or where
            return
        currency, body, scientific = parts
        self._numbers += 1
        if _LEADING_ZERO.match(body):
            self._problem = self._problem or f"{where}, whose leading 0 a number would lose"
        if sum(map(str.isdigit, body)) > _MOST_DIGITS and not scientific:
            self._problem = self._problem or f"{where}, which has too many digits"
        if self._currency is None:
            self._currency = currency
        elif currency != self._currency:
            self._problem = self._problem or f"{where}, in another currency than the cells before"
        if scientific:
            self._whole = self._comma = False
            return
        self._point = self._point and bool(_POINT.fullmatch(body))
        self._comma = self._comma and bool(_COMMA.fullmatch(body))
        self._whole = self._whole and body.isdigit()
        self._separated = self._separated or "," in body or ("." in body and bool(currency))
        self._both_separators = self._both_separators or ("," in body and "." in body)

    def _see_date(self, cell: str, where: str) -> None:
        orders = _orders_of(cell)
        if _MOMENT.fullmatch(cell):
            shape = re.sub(r"[0-9]", "0", cell)
            if self._moment is None:
                self._moment = shape
            if shape == self._moment and _is_day(cell[:10]):
                self._dates += 1
                return
        elif orders:
            self._dates += 1
            self._first_date = self._first_date or cell
            self._orders = orders if self._orders is None else self._orders & orders
            return
        self._not_a_date = self._not_a_date or where

    def found(self) -> tuple[Callable[[str], Value] | None, str, str]:
        """The type of the column.

        Returns:
            A function from a cell to its value, or None for text; what the summary says of it, if
            anything; its currency, if it holds prices.
        """
        if self._cells and self._numbers == self._cells:
            return self._found_number()
        if self._cells and self._dates == self._cells:
            return self._found_date()
        if self._numbers and self._numbers * 2 >= self._cells:
            return None, f"text, since {self._not_a_number}, which is not a number", ""
        if self._dates and self._dates * 2 >= self._cells:
            return None, f"text, since {self._not_a_date}, which is not a date like the others", ""
        return None, "", ""

    def _found_number(self) -> tuple[Callable[[str], Value] | None, str, str]:
        currency = self._currency or ""
        if self._problem:
            return None, f"text, since {self._problem}", ""
        if self._point and self._comma and self._separated:
            return None, "text, since 1,234 and 1.234 may be a thousand or a fraction", ""
        if not (self._point or self._comma):
            return None, "text, since points and commas have both meanings in its cells", ""
        commas = not self._point
        if commas and self._comma_separates and not (currency or self._both_separators):
            return None, "text, since 3,5 may be a fraction or a list", ""
        in_currency = f" in {currency}" if currency else ""
        if self._whole and not currency:
            return _whole_number, "whole number", ""
        if commas:
            return _number_with_comma, f"number{in_currency} (3,5 is 3.5)", currency
        return _number_with_point, f"number{in_currency}", currency

    def _found_date(self) -> tuple[Callable[[str], Value] | None, str, str]:
        if self._moment is not None:
            if self._orders is not None:
                return None, "text, since only some of its dates have a time", ""
            return str, "date and time, compared as text", ""
        if not self._orders:
            return None, "text, since its dates are not all written the same way", ""
        if len(self._orders) > 1:
            return None, f"text, since {self._first_date!r} may be either of two dates", ""
        ((_, order),) = self._orders
        return (
            lambda cell: _iso_date(cell.strip(), order),
            f"date ({_IN_WORDS[order]}), as 2024-12-31",
            "",
        )


def _number_parts(cell: str) -> tuple[str, str, bool] | None:
    """Currency, digits with their separators, and whether the number has an exponent."""
    if len(cell) > _LONGEST or not any(map(str.isdigit, cell)):
        return None
    if _SCIENTIFIC.fullmatch(cell):
        return ("", cell, True) if math.isfinite(float(cell)) else None
    body = _BODY.search(cell)
    if body is None:
        return None
    before, after = cell[: body.start()], cell[body.end() :]
    currency = (before.strip(" +-−\u00a0\u202f") + after.strip(" \u00a0\u202f")).strip()
    if currency and not _is_currency(currency):
        return None
    signs = re.findall(r"[+\-−]", before)
    if len(signs) > 1:
        return None
    if not (_POINT.fullmatch(body[0]) or _COMMA.fullmatch(body[0])):
        return None
    return currency, body[0], False


def _is_currency(text: str) -> bool:
    return bool(_CURRENCIES.fullmatch(text)) or (
        len(text) == 1 and unicodedata.category(text) == "Sc"
    )


def _digits(cell: str) -> str:
    cell = cell.strip()
    if _SCIENTIFIC.fullmatch(cell):
        return cell
    body = _BODY.search(cell)
    assert body is not None  # the whole column was seen
    sign = "-" if re.search(r"[-−]", cell[: body.start()]) else ""
    return sign + re.sub(f"[{_SPACES}]", "", body[0])


def _whole_number(cell: str) -> Value:
    return int(_digits(cell))


def _number_with_point(cell: str) -> Value:
    return float(_digits(cell).replace(",", ""))


def _number_with_comma(cell: str) -> Value:
    return float(_digits(cell).replace(".", "").replace(",", "."))


def _orders_of(cell: str) -> set[tuple[str, str]]:
    """The orders of year, month and day that make a cell a date, each with the separator."""
    found = _DATE.fullmatch(cell)
    if found is None:
        return set()
    return {(found[2], order) for order in _ORDERS[found[2]] if _iso_date(cell, order)}


def _iso_date(cell: str, order: str) -> str:
    parts = dict(zip(order, re.split("[-/.]", cell), strict=True))
    if len(parts["y"]) != 4 or len(parts["d"]) > 2:
        return ""
    try:
        return date(int(parts["y"]), int(parts["m"]), int(parts["d"])).isoformat()
    except ValueError:
        return ""


def _is_day(text: str) -> bool:
    return bool(_iso_date(text, "ymd"))
