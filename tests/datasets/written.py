"""How datasets are written here, and what is in a folder."""

import jax

from smdp_jax import datasets

KEY = jax.random.key(3)


def write(path, generate, **options):
    options = {"chunks": 3, "key": KEY, "config": {"rate": 0.1}, "progress": False} | options
    return datasets.write(path, generate, **options)


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
