"""What a function becomes on a GPU or a TPU, which neither is needed for.

There a float32 matrix product rounds its factors to TF32 or bfloat16, unless it asks for more.
"""

from collections.abc import Callable
from typing import Any

import jax

PLATFORMS = ("cuda", "tpu")


def lowered(function: Callable[..., Any], *inputs: Any, platform: str) -> str:
    """The program of a function, as text."""
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def rounding_products(program: str) -> list[str]:
    """Its products that do not ask for all digits."""
    kinds = ("stablehlo.dot_general", "stablehlo.convolution")
    lines = [line.strip() for line in program.splitlines() if any(k in line for k in kinds)]
    return [line for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]
