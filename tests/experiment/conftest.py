"""Runs of these tests are hardly trained: that their paths stray is no news."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Also for what fixtures run: they are set up under the marks of their first test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:.* paths left the range"))
