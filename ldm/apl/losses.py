"""Losses of Anonymization Prompt Learning (paper sections 3.4 and 3.5, Eq. 5 to 7)."""

from torch import Tensor
from torch.nn import functional as F


def anonymized_target(eps_name: Tensor, eps_attributes: Tensor, alpha: float) -> Tensor:
    """Noise prediction that keeps the attributes of c2 and leaves the identity of c1 (Eq. 5).

    Args:
        eps_name: eps(x, tau(c1), t), (B, 4, h, w), predicted without the prefix.
        eps_attributes: eps(x, tau(c2), t), same shape.
        alpha: strength; 0 aligns with c2 exactly, 1 is the paper's choice.

    Returns:
        (B, 4, h, w), detached: Eq. 6 sends no gradient through the target.

    Raises:
        ValueError: the shapes differ; broadcasting would hide a batching mistake.
    """
    _same_shape(eps_name=eps_name, eps_attributes=eps_attributes)
    return (eps_attributes + alpha * (eps_attributes - eps_name)).detach()


def apl_loss(eps_prefixed: Tensor, eps_name: Tensor, eps_attributes: Tensor, alpha: float = 1.0, *,
             reduction: str = "mean") -> Tensor:
    """L_ID (Eq. 6), or L_Reg (Eq. 7) when c1 = c2; scalar, mean over batch, channels and pixels.

    The paper writes a squared norm; the mean differs by a constant factor that Adam cancels.

    Args:
        eps_prefixed: eps(x, tau_AP(c1), t), (B, 4, h, w); the only prediction that receives a gradient.
        eps_name, eps_attributes, alpha: see `anonymized_target`.
        reduction: "none" gives the loss of each sample, (B,).

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(eps_prefixed=eps_prefixed, eps_attributes=eps_attributes)
    losses = F.mse_loss(eps_prefixed, anonymized_target(eps_name, eps_attributes, alpha), reduction="none").mean(dim=(1, 2, 3))
    return losses if reduction == "none" else losses.mean()


def _same_shape(**predictions: Tensor) -> None:
    (first, a), (second, b) = predictions.items()
    if a.shape != b.shape:
        raise ValueError(f"{first} has shape {tuple(a.shape)}, {second} {tuple(b.shape)}; predict both from the same noisy_latent")
