from __future__ import annotations

import pytest

from llama_index_gap.readers.column_types import ColumnType, Value


def typed(cells: list[str], *, comma_separates: bool = True) -> tuple[list[Value] | None, str, str]:
    column = ColumnType(comma_separates=comma_separates)
    for line, cell in enumerate(cells, start=2):
        column.see(cell, line)
    convert, said, currency = column.found()
    return convert and [convert(cell) for cell in cells], said, currency


@pytest.mark.parametrize(
    ("cells", "values", "currency"),
    [
        (["2005", " 1999 ", "-3"], [2005, 1999, -3], ""),
        (["0", "10"], [0, 10], ""),
        (["1.5", "2", ".25"], [1.5, 2.0, 0.25], ""),
        (["1e-05", "2.5e+10"], [1e-05, 2.5e10], ""),
        (["1,299.00", "5"], [1299.0, 5.0], ""),
        (["$12.50", "$1,299.00"], [12.5, 1299.0], "$"),
        (["-$3.00", "$4.00"], [-3.0, 4.0], "$"),
        (["12.50 USD", "7.00 USD"], [12.5, 7.0], "USD"),
        (["1.299,00 €", "5,50 €"], [1299.0, 5.5], "€"),
        (["1 299,00\u00a0€", "3,00 €"], [1299.0, 3.0], "€"),
        (["CHF 1'299.00", "CHF 2.00"], [1299.0, 2.0], "CHF"),
        (["$12", "$13"], [12.0, 13.0], "$"),
        (["2024-01-31"], ["2024-01-31"], ""),
        (["31.12.2024", "1.2.2024"], ["2024-12-31", "2024-02-01"], ""),
        (["25/12/2024", "1/2/2024"], ["2024-12-25", "2024-02-01"], ""),
        (["12/25/2024", "1/2/2024"], ["2024-12-25", "2024-01-02"], ""),
        (["2024-01-31T10:00:00Z", "2024-02-01T10:00:00Z"], None, ""),
    ],
)
def test_a_whole_column_of_numbers_prices_or_dates(
    cells: list[str], values: list[Value] | None, currency: str
) -> None:
    found, _, in_currency = typed(cells)

    assert found == (values or cells)
    assert in_currency == currency


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["2005", "unknown", "1999"], "line 3 has 'unknown', which is not a number"),
        (["unknown", "2005", "1999"], "line 2 has 'unknown', which is not a number"),
        (["10115", "01067"], "line 3 has '01067', whose leading 0 a number would lose"),
        (["$5", "€5"], "line 3 has '€5', in another currency"),
        (["5", "$5"], "line 3 has '$5', in another currency"),
        (["1,299", "2,500"], "may be a thousand or a fraction"),
        (["1.299 €", "2.500 €"], "may be a thousand or a fraction"),
        (["38,40", "42,5"], "may be a fraction or a list"),
        (["1.299,00", "1,299.00"], "points and commas have both meanings"),
        (["1/2/2024", "3/4/2024"], "'1/2/2024' may be either of two dates"),
        (["2024-01-31", "31.12.2024"], "not all written the same way"),
        (["2024-01-31", "2024-01-31T10:00"], "only some of its dates have a time"),
        (["2024-01-31", "2024-13-31"], "line 3 has '2024-13-31', which is not a date"),
        (["9" * 19], "too many digits"),
        (["blue", "red"], ""),
        (["12 cm", "5 kg"], ""),
        (["38 XXL"], ""),
        (["1-2", "TRUE"], ""),
        (["1e5", "12E3"], ""),
        (["٣"], ""),
        ([], ""),
    ],
)
def test_a_column_that_stays_text_and_why(cells: list[str], said: str) -> None:
    found, why, _ = typed(cells)

    assert found is None
    assert said in why
    assert bool(said) == bool(why)


def test_a_comma_is_a_fraction_s_where_cells_stand_between_semicolons() -> None:
    assert typed(["3,5", "12,25"], comma_separates=False)[0] == [3.5, 12.25]
