"""Packages that pictures need; imported before all else here, to say how to get them."""

import importlib

for name in ("matplotlib", "PIL"):
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'plots need {name}, which is not installed: pip install "smdp_jax[plots]"'
        ) from error
