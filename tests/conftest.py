"""The strict session: what JAX would broadcast over ranks or cast between types is an error."""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64() -> Iterator[None]:
    """Compute in float64 by default for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the session's checks of annotations off: what users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
