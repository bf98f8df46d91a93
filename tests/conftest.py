"""The strict session: what JAX would broadcast over ranks or cast between types is an error."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64() -> Iterator[None]:
    """Compute in float64 by default for the length of one test."""
    with jax.enable_x64(True):
        yield
