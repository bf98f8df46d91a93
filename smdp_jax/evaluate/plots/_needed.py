"""Packages that pictures need; imported before all else here, to say how to get them."""

from smdp_jax.checks import needed

for name in ("matplotlib", "PIL"):
    needed(name, "plots need", "plots")
