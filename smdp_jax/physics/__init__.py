"""Physical systems: each a process, its prior, and closed forms where they exist."""

from smdp_jax.physics.affine import Affine
from smdp_jax.physics.fokker_planck import transition_density
from smdp_jax.physics.gaussian_field import mode_variance, spectral_modes
from smdp_jax.physics.gaussian_modes import LinearRates
from smdp_jax.physics.heat import Heat
from smdp_jax.physics.quadratic import Quadratic, Reference, reference
from smdp_jax.physics.starts import balanced_signs
from smdp_jax.physics.transition import Transition

__all__ = [
    "Affine",
    "Heat",
    "LinearRates",
    "Quadratic",
    "Reference",
    "Transition",
    "balanced_signs",
    "mode_variance",
    "reference",
    "spectral_modes",
    "transition_density",
]
