"""What a figure was computed with: versions and devices."""

import platform
from importlib import metadata

import jax
import jax.numpy as jnp

PACKAGES = ("smdp_jax", "jax", "jaxlib", "flax", "diffrax", "optax", "orbax-checkpoint", "numpy")
"""Distributions whose versions are recorded."""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe_environment() -> dict[str, str]:
    """Versions and devices of this process, for a report or a benchmark's record.

    Returns
    -------
    dict[str, str]
        Python, operating system, the packages of `PACKAGES`, jax devices, and default precision.
        Nothing in it names a user, a host, or a path.
    """
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{package: _version(package) for package in PACKAGES},
        "devices": f"{devices} ({jax.default_backend()})",
        "processes": str(jax.process_count()),
        "precision": jnp.result_type(float).name,
    }
