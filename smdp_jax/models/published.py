"""The networks of the paper's experiments, by name, with their numbers of parameters.

Holzschuh, Vegetti, Thuerey, "Solving Inverse Physics Problems with Score Matching", 2023.

Inputs are those of the paper: all fields of the state, masks among the conditions, time as it is,
and the coordinates where there are walls. Any field of a network can be replaced by keyword.
"""

from typing import Any

from smdp_jax.models.dilated_resnet import DilatedResNet
from smdp_jax.models.encoder_decoder import EncoderDecoder
from smdp_jax.models.fno import FNO
from smdp_jax.models.unet import UNet


def heat_encoder_decoder(**options: Any) -> EncoderDecoder:
    """Encoder-decoder of the heat equation on a periodic square: 330 754 parameters.

    4×4 convolutions, 32 channels, 5 residual blocks each way, time as a channel.

    Parameters
    ----------
    **options
        Fields of `EncoderDecoder` to replace.

    Returns
    -------
    EncoderDecoder
        For a state of one (n, n) field.
    """
    chosen: dict[str, Any] = {"time_features": "raw"}
    return EncoderDecoder(**chosen | options)


def burgers_resnet(**options: Any) -> DilatedResNet:
    """Periodic residual network for Burgers' equation: 50 753 parameters.

    Parameters
    ----------
    **options
        Fields of `DilatedResNet` to replace.

    Returns
    -------
    DilatedResNet
        For a state of one (n,) field, inside `SpectralPreconditioned` (which shows it a second
        one), n at least about 64: every block sees 15 cells to either side.
    """
    chosen: dict[str, Any] = {"dims": 1, "channels": 32, "blocks": 4, "dilations": (1, 2, 4, 8)}
    return DilatedResNet(**chosen | options)


def smoke_resnet(**options: Any) -> DilatedResNet:
    """Dilated residual network of the buoyancy-driven flow: 336 915 parameters.

    Parameters
    ----------
    **options
        Fields of `DilatedResNet` to replace.

    Returns
    -------
    DilatedResNet
        For a state of marker and two velocities on the inner faces, and an obstacle mask among the
        conditions. Velocities that include the faces on the walls take two channels each: 338 645.
    """
    chosen: dict[str, Any] = {"padding": "zero", "coordinates": True, "time_features": "raw"}
    return DilatedResNet(**chosen | options)


def smoke_unet(**options: Any) -> UNet:
    """U-Net of the buoyancy-driven flow, 16 to 112 channels: 1 169 891 parameters.

    Residual blocks that time modulates stand in for the paper's plain convolutions.

    Parameters
    ----------
    **options
        Fields of `UNet` to replace.

    Returns
    -------
    UNet
        For the state of `smoke_resnet`, sides a multiple of 64.
    """
    channels = (16, 32, 48, 64, 80, 96, 112)
    chosen: dict[str, Any] = {"channels": channels, "padding": "zero", "coordinates": True}
    return UNet(**chosen | options)


def baseline_fno(**options: Any) -> FNO:
    """Fourier neural operator of the baselines, 12 modes, width 20, 4 layers: 926 197 parameters.

    Parameters
    ----------
    **options
        Fields of `FNO` to replace.

    Returns
    -------
    FNO
        For a state of one (n, n) field, n at least 24.

    References
    ----------
    Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021.
    """
    chosen: dict[str, Any] = {"coordinates": True, "time_features": "raw"}
    return FNO(**chosen | options)
