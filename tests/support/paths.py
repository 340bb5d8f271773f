"""The folders of the tests' files."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PARITY = TESTS / "fixtures" / "parity"
