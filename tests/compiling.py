"""Long tests that compile more than they compute: as the fast suite compiles."""

import contextlib
from collections.abc import Iterator

import pytest
from jax._src import compiler

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# For processes that tests start one after the other: also what compiles in no time is kept.
QUICKLY = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """XLA reads its flags once in a process; options of one program are read each time."""
    before = compiler.get_compile_options

    def options(*args, **named):
        found = before(*args, **named)
        found.env_option_overrides = list((dict(found.env_option_overrides) | QUICK).items())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        yield
