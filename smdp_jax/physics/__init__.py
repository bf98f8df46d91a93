"""Physical systems: each a process, its prior, and closed forms where they exist.

States, conditions and numbers that do not fit a system are refused with a ValueError that names it.
"""

from smdp_jax.physics.affine import Affine
from smdp_jax.physics.burgers import Burgers
from smdp_jax.physics.exact.cole_hopf import cole_hopf
from smdp_jax.physics.exact.fokker_planck import transition_density
from smdp_jax.physics.exact.gaussian_modes import LinearRates
from smdp_jax.physics.exact.transition import Transition
from smdp_jax.physics.heat import Heat
from smdp_jax.physics.jax_cfd import finite_volume_drift, finite_volume_projection
from smdp_jax.physics.quadratic import Quadratic, Reference, reference
from smdp_jax.physics.smoke import Smoke
from smdp_jax.physics.spectral.gaussian_field import mode_variance, spectral_modes
from smdp_jax.physics.spectral.periodic import coarsen, refine
from smdp_jax.physics.system import CourantWarning, balanced_signs, spin_up
from smdp_jax.physics.turbulence import Turbulence

__all__ = [
    "Affine",
    "Burgers",
    "CourantWarning",
    "Heat",
    "LinearRates",
    "Quadratic",
    "Reference",
    "Smoke",
    "Transition",
    "Turbulence",
    "balanced_signs",
    "coarsen",
    "cole_hopf",
    "finite_volume_drift",
    "finite_volume_projection",
    "mode_variance",
    "reference",
    "refine",
    "spectral_modes",
    "spin_up",
    "transition_density",
]
