from __future__ import annotations

import numpy as np
import pytest

from llama_index_gap.gap.arrays import unit_rows


def test_rows_of_length_one() -> None:
    given = np.array([[3.0, 4.0], [0.0, 0.0]])
    rows = unit_rows(given)

    assert rows.dtype == np.float32
    assert rows[0] == pytest.approx([0.6, 0.8])
    assert np.isnan(rows[1]).all()
    assert unit_rows([0, 2], np.float64).tolist() == [0, 1]
    assert unit_rows(given, np.float64).dtype == np.float64
    assert given.tolist() == [[3, 4], [0, 0]]
