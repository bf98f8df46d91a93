"""Compile what a stage of an experiment would run, for a device that need not be there.

Only programs compiled as a whole are seen: ``jax.jit``, ``jax.lax.map`` and the compiled functions
of the library. Operations dispatched one by one run where they are, on made-up numbers.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from unittest import mock

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental import topologies

Chip = Literal["here", "h100", "v5e"]

RUN = ("march",)
"""Functions that do run: what their values must fulfil is checked."""
_JIT, _MAP = jax.jit, jax.lax.map
_FILTER_JIT: Any = type(eqx.filter_jit(len))
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Program:
    """Memory that a compiler planned for a program, in bytes; its text, and what it computes."""

    name: str
    inputs: int
    outputs: int
    scratch: int
    text: str = field(repr=False)
    jaxpr: Any = field(repr=False)

    @property
    def memory(self) -> int:
        return self.inputs + self.outputs + self.scratch


def device_of(chip: Chip) -> Any:
    """Return a device to compile for, by the plugin for it: ``jax[cuda12]`` or ``libtpu``."""
    if chip == "here":
        return jax.devices()[0]
    asked = {"platform": "tpu", "topology_name": "v5e:2x2"}
    if chip == "h100":
        asked = {"platform": "cuda", "target_config": H100, "topology": "1x1x1"}
    try:
        return topologies.get_topology_desc(**asked).devices[0]
    except (NotImplementedError, RuntimeError) as error:
        plugin = {"h100": "jax[cuda12]", "v5e": "libtpu"}[chip]
        raise SystemExit(
            f"cannot compile for {chip}: install {plugin}, and on a machine without such a device "
            f"set JAX_PLATFORMS=cpu ({error})"
        ) from error


@dataclass(frozen=True)
class Traced:
    """What ``jax.jit(f).trace(...)`` gives, with ``run`` in place of what it would compile."""

    traced: Any
    run: Callable

    def lower(self) -> "Traced":
        return self

    def compile(self, options: Any = None) -> Callable:
        return self.run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.traced, name)


@dataclass(frozen=True)
class Compiler:
    """Compiles for a device, and remembers what it compiled, by the text of the program."""

    device: Any
    programs: dict[str, Program] = field(default_factory=dict)

    def __call__(self, function: Callable, inputs: Any) -> Any:
        """Compile, and return the shapes and dtypes of what the function returns."""
        arrays, others = eqx.partition(inputs, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        def call(*leaves: Any) -> Any:
            given, named = eqx.combine(jax.tree.unflatten(structure, leaves), others)
            return function(*given, **named)

        there = jax.sharding.SingleDeviceSharding(self.device)
        described = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there) for x in leaves]
        traced: Any = _JIT(call).trace(*described)
        platform = "cuda" if self.device.platform == "gpu" else self.device.platform
        lowered = traced.lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        if text not in self.programs:
            name = function.__qualname__.replace("<locals>.", "")
            compiled = lowered.compile()
            planned = compiled.memory_analysis()
            self.programs[text] = program = Program(
                name,
                planned.argument_size_in_bytes,
                planned.output_size_in_bytes - planned.alias_size_in_bytes,
                planned.temp_size_in_bytes,
                compiled.as_text(),
                traced.jaxpr,
            )
            harness.say(f"  {name}: {program.memory / 2**30:.3f} GiB")
        return traced.out_info

    def in_place_of(self, whole: Callable, function: Callable, *, always: bool = False) -> Callable:
        """Return what compiles a function where it was run, and traces it where it was traced.

        Once for inputs of the same shapes, unless told to compile always.
        """
        known: dict[str, Any] = {}

        @functools.wraps(function)
        def call(*inputs: Any, **named: Any) -> Any:
            leaves = [x for x in jax.tree.leaves((inputs, named)) if eqx.is_array(x)]
            if any(isinstance(leaf, Tracer) for leaf in leaves):
                return whole(*inputs, **named)
            shapes = str([leaf.shape for leaf in leaves])
            if always or shapes not in known:
                known[shapes] = self(function, (inputs, named))
            return jax.tree.map(functools.partial(_made_up, leaves), known[shapes])

        stages: Any = call  # of a jitted function: traced, lowered and compiled one by one
        stages.trace = lambda *inputs: Traced(cast(Any, whole).trace(*inputs), call)
        stages.lower = getattr(whole, "lower", None)
        return call


def compiled_in_library() -> list[tuple[Any, str, Any]]:
    """Return the functions that are compiled where they are defined: module, name, function."""
    loaded = [module for name, module in sys.modules.items() if name.startswith("smdp_jax.")]
    return [
        (module, name, value)
        for module in loaded
        for name, value in vars(module).items()
        if isinstance(value, _FILTER_JIT) or hasattr(value, "programs")
    ]


@contextlib.contextmanager
def compiling_for(device: Any) -> Iterator[Mapping[str, Program]]:
    """Inside, compiled functions are compiled for the device and return made-up numbers.

    An output that has the shape of an input is the last such input (epochs get where they stop
    last), others are small noise.

    Yields
    ------
    dict of Program
        By their text, in the order in which they are found.
    """
    compiler = Compiler(device)

    def jit(function: Callable, **options: Any) -> Callable:
        whole = _JIT(function, **options)
        return whole if function.__name__ in RUN else compiler.in_place_of(whole, function)

    def lax_map(function: Callable, xs: Any, **options: Any) -> Any:
        @functools.wraps(function)
        def over(xs: Any) -> Any:
            return _MAP(function, xs, **options)

        return compiler.in_place_of(over, over)(xs)

    instead: list[tuple[Any, str, Callable]] = [(jax, "jit", jit), (jax.lax, "map", lax_map)]
    # What is no array, such as what to save, is part of these programs, too.
    instead += [
        (module, name, compiler.in_place_of(whole, whole.__wrapped__, always=True))
        for module, name, whole in compiled_in_library()
    ]
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.dict("smdp_jax.training.programs._programs", clear=True))
        # Of made-up numbers: lost paths and their like.
        patches.enter_context(warnings.catch_warnings(action="ignore", category=UserWarning))
        for owner, name, function in instead:
            patches.enter_context(mock.patch.object(owner, name, function))
        yield compiler.programs


def _made_up(inputs: list[jax.Array], output: Any) -> jax.Array:
    for given in reversed(inputs):
        if (given.shape, given.dtype) == (output.shape, output.dtype):
            return given
    if output.dtype == jnp.bool_:  # such as whether all is finite
        return jnp.ones(output.shape, output.dtype)
    if not jnp.issubdtype(output.dtype, jnp.floating):
        return jnp.zeros(output.shape, output.dtype)
    return 1e-2 * jax.random.normal(jax.random.key(0), output.shape, output.dtype)
