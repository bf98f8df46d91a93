"""How datasets are written in these tests."""

import jax

from smdp_jax import datasets

KEY = jax.random.key(3)


def write(path, generate, **options):
    options = {"chunks": 3, "key": KEY, "config": {"rate": 0.1}, "progress": False} | options
    return datasets.write(path, generate, **options)
