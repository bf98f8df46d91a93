"""Three paths of a field, and how foreign files are read."""

import numpy as np

from smdp_jax import datasets

RANDOM = np.random.default_rng(1)
TS = np.linspace(0, 2, 6).astype("float32")
U = RANDOM.normal(size=(3, 6, 8)).astype("float32")


def read(path, **options):
    return datasets.open_foreign(path, **{"dtype": "float32"} | options).load()
