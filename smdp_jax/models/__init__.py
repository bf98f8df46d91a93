"""Score networks: flax modules `net(t, x, args)`, unbatched, any pytree state in and out.

A network takes a scalar time, a state (any pytree of floating-point arrays) and conditions, and
returns a tree like the state. All start at score 0, or at the score of a Gaussian.
"""

from smdp_jax.models.dilated_resnet import DilatedResNet as DilatedResNet
from smdp_jax.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from smdp_jax.models.fno import FNO as FNO
from smdp_jax.models.for_fields import for_fields as for_fields
from smdp_jax.models.grid import GridScore as GridScore
from smdp_jax.models.mlp import MLP as MLP
from smdp_jax.models.published import baseline_fno as baseline_fno
from smdp_jax.models.published import burgers_resnet as burgers_resnet
from smdp_jax.models.published import heat_encoder_decoder as heat_encoder_decoder
from smdp_jax.models.published import smoke_resnet as smoke_resnet
from smdp_jax.models.published import smoke_unet as smoke_unet
from smdp_jax.models.rescaled import Rescaled as Rescaled
from smdp_jax.models.spectral import SpectralGain as SpectralGain
from smdp_jax.models.spectral import SpectralPreconditioned as SpectralPreconditioned
from smdp_jax.models.spectrum import Spectrum as Spectrum
from smdp_jax.models.time_features import Fourier as Fourier
from smdp_jax.models.unet import UNet as UNet
from smdp_jax.physics.spectral.gaussian_field import mode_variance as mode_variance
