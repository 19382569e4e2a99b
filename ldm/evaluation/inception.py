"""Features for FID: the original Inception network of 2015-12-05 from a local file (paper section 4.1, reference Parmar et al.).

Three protocols are in use. They share the network and the normalization (x - 128) / 128, but resize images to 299 x 299 pixels
differently, so their FIDs are not comparable:

    clean         clean-fid, which the paper cites: antialiased bicubic of each channel as float, with Pillow
    tf            the original and torch-fidelity: bilinear on TensorFlow 1's grid, without antialiasing
    torchmetrics  torchmetrics' default: antialiased bilinear

Two file formats of the same weights are supported: the state dict of pytorch-fid and torch-fidelity, for which torchvision's network
is adapted, and the TorchScript file of clean-fid.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from ldm.containers import TORCHSCRIPT, kind_of
from ldm.evaluation.weights import weights_for
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.util import UserError

SIZE = 299
BATCH = 32


class InceptionFeatures:
    """Features of images before the last layer of Inception, under one protocol.

    `weights` is pt_inception-2015-12-05-6726825d.pth, weights-inception-2015-12-05-6726825d.pth or inception-2015-12-05.pt. Raises
    UserError if it does not exist, is damaged, or belongs to another network, such as torchvision's own Inception.
    """

    def __init__(self, weights: str | Path, protocol: str = "clean", device: str | torch.device = "cpu") -> None:
        with weights_for("the original Inception (2015-12-05)", weights) as file:
            # clean-fid's file resizes and normalizes in its own way before `layers`.
            network = torch.jit.load(file, map_location="cpu").layers if kind_of(file) == TORCHSCRIPT else _from_state_dict(file, weights)
            self.network = network.to(device).eval()
            check_finite(self.network.state_dict(), weights, FETCH_AGAIN)
        self.resize, self.device = RESIZE[protocol], torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features (N, 2048) float32 of N images, (H, W, 3) uint8 RGB each, of any size."""
        features = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self.resize(image) for image in images[start:start + BATCH]]).to(self.device)
            features.append(self.network((batch - 128) / 128).flatten(1).float().cpu().numpy())
        return np.concatenate(features)


def resize_clean(image: np.ndarray) -> Tensor:
    """Resize an image (H, W, 3) uint8 to (3, 299, 299) float in [0, 255]; not rounded, overshoot clipped."""
    channels = (Image.fromarray(channel).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for channel in _channels(image).numpy())
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255)


def resize_tf(image: np.ndarray) -> Tensor:
    """Like `resize_clean`, with TensorFlow 1's grid: output pixel i interpolates the two neighbours of i * (old size) / 299."""
    pixels = _channels(image)
    for axis in (1, 2):
        length = pixels.shape[axis]
        place = torch.arange(SIZE) * (length / SIZE)
        low = place.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (place - low).unsqueeze(1) if axis == 1 else place - low  # weight of the higher neighbour
        pixels = pixels.index_select(axis, low) * (1 - share) + pixels.index_select(axis, high) * share
    return pixels


def resize_torchmetrics(image: np.ndarray) -> Tensor:
    """Like `resize_clean`, with torchmetrics' antialiased bilinear interpolation."""
    return F.interpolate(_channels(image)[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)[0]


def _channels(image: np.ndarray) -> Tensor:
    """An image (H, W, 3) uint8 as (3, H, W) float in [0, 255]."""
    return torch.tensor(image).permute(2, 0, 1).float()


RESIZE: dict[str, Callable[[np.ndarray], Tensor]] = {
    "clean": resize_clean, "tf": resize_tf, "torchmetrics": resize_torchmetrics}


def original_inception() -> nn.Module:
    """The network with random weights; maps (B, 3, 299, 299) in [-1, 1] to (B, 2048).

    torchvision's network differs from the original only in pooling: the original excludes the padding from averages and uses a
    maximum in its last block.
    """
    from torchvision.models.inception import Inception3

    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    traced = symbolic_trace(network.eval())
    averages = [node for node in traced.graph.nodes if node.target is F.avg_pool2d]
    for node in averages[:-1]:
        node.kwargs = {**node.kwargs, "count_include_pad": False}
    averages[-1].target = F.max_pool2d
    traced.recompile()
    return traced


def _from_state_dict(path: Path, weights: str | Path) -> nn.Module:
    """The network with the weights in `path`. Messages name the file as the user gave it, `weights`."""
    network = original_inception()
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    missing, surplus = network.load_state_dict(state, strict=False)  # checks the shapes
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if surplus or missing:
        raise UserError(f"{weights} is not the original Inception: {len(missing)} tensors are missing, {len(surplus)} unknown (first: "
                        f"{(missing + surplus)[0]}); give pt_inception-2015-12-05-6726825d.pth")
    return network
