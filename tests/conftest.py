"""The strict session: what JAX would broadcast over ranks or cast between types is an error."""

import os
import tempfile
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np
import pytest

from tests.compiling import quickly

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

_CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()
# Tests compute little: optimised code saves less than it costs. These change the last step alone,
# from XLA's operations to machine code.
_COMPILES_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
_WHOLE_RUNS = ("_experiment.py", "_example.py", "_resume.py", "_benchmarks.py")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the same program once for all workers, and for the processes that tests start.

    With a bound on its size JAX locks the cache, so that nobody reads half an entry.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers, and whoever keeps one for longer
        config.stash[_CACHE] = cache = tempfile.TemporaryDirectory(prefix="smdp_jax_compiled_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(8 * 2**30)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    if config.getoption("markexpr") == "not slow":
        os.environ["XLA_FLAGS"] = f"{_COMPILES_QUICKLY} {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_compilation_cache_max_size", 8 * 2**30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drop what was compiled."""
    if _CACHE in config.stash:
        config.stash[_CACHE].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take minutes, so that no worker waits for another at the end."""
    items.sort(key=lambda item: not item.path.name.endswith(_WHOLE_RUNS))


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled() -> Iterator[None]:
    """A worker that keeps the programs of all files slows down as its memory grows."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiles_quickly() -> Iterator[None]:
    """Compile as the fast suite does: for long tests that compile more than they compute."""
    with quickly():
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Compute in float64 by default for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the session's checks of annotations off: what users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def no_step_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what ``fit`` measures at the end, which compiles as long as the training itself."""
    # Above, it would come before the checks of its annotations.
    from smdp_jax.objectives import InverseStep, MultiStep, Objective

    for kind in (Objective, MultiStep, InverseStep):
        monkeypatch.setattr(kind, "miss", lambda *inputs: np.ones(1))
