"""Packages that only datasets need."""

import importlib
from types import ModuleType


def check_installed(module: str) -> ModuleType:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'datasets on disk need {module}, which is not installed: pip install "smdp_jax[data]"'
        ) from error
