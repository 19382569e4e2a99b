"""Features of FID: the original Inception network of 2015-12-05 from a local file (paper section 4.1, reference Parmar et al.).

Three protocols are in use. They share the network and the normalization (x - 128) / 128, and differ in how a picture comes to
299 x 299 pixels, which is enough to make their FIDs different numbers:

    clean         clean-fid, which the paper cites: antialiased bicubic of each channel as float, with Pillow
    tf            the original and torch-fidelity: bilinear on TensorFlow 1's grid, without antialiasing
    torchmetrics  torchmetrics' default: antialiased bilinear

Two forms of the same weights are read: the state dict of pytorch-fid and torch-fidelity, for which the network is made from
torchvision's, and the TorchScript file of clean-fid.
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
    """Features of pictures before the last layer of Inception, under one protocol.

    Args:
        weights: pt_inception-2015-12-05-6726825d.pth, weights-inception-2015-12-05-6726825d.pth or inception-2015-12-05.pt.
        protocol: "clean", "tf" or "torchmetrics".
        device: where the network runs.

    Raises:
        UserError: the file is not there, damaged, or of another network (torchvision's own Inception is one).
    """

    def __init__(self, weights: str | Path, protocol: str = "clean", device: str | torch.device = "cpu") -> None:
        with weights_for("the original Inception (2015-12-05)", weights) as file:
            self.network = (_scripted(file) if kind_of(file) == TORCHSCRIPT else _from_state_dict(file, weights)).to(device).eval()
            check_finite(self.network.state_dict(), weights, FETCH_AGAIN)
        self.resize, self.device = RESIZE[protocol], torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 2048) float32 of N pictures, (H, W, 3) uint8 RGB each, of any size."""
        features = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self.resize(image) for image in images[start:start + BATCH]]).to(self.device)
            features.append(self.network((batch - 128) / 128).flatten(1).float().cpu().numpy())
        return np.concatenate(features)


def resize_clean(image: np.ndarray) -> Tensor:
    """(3, 299, 299) float in [0, 255] of a picture (H, W, 3) uint8; not rounded, overshoot clipped."""
    channels = [Image.fromarray(image[..., channel].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                for channel in range(3)]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).clamp(0, 255)


def resize_tf(image: np.ndarray) -> Tensor:
    """As `resize_clean`; pixel i of the result lies at i * (old size) / 299 between its two neighbours, as TensorFlow 1 has it."""
    pixels = torch.tensor(image).permute(2, 0, 1).float()
    for axis in (1, 2):
        length = pixels.shape[axis]
        place = torch.arange(SIZE) * (length / SIZE)
        low = place.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (place - low).unsqueeze(1) if axis == 1 else place - low  # of the higher neighbour
        pixels = pixels.index_select(axis, low) * (1 - share) + pixels.index_select(axis, high) * share
    return pixels


def resize_torchmetrics(image: np.ndarray) -> Tensor:
    """As `resize_clean`."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    return F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)[0]


RESIZE: dict[str, Callable[[np.ndarray], Tensor]] = {
    "clean": resize_clean, "tf": resize_tf, "torchmetrics": resize_torchmetrics}


def original_inception() -> nn.Module:
    """The network with random weights: (B, 3, 299, 299) in [-1, 1] -> (B, 2048).

    torchvision's network differs from the original in its pooling alone: the original leaves the padding out of each average,
    and takes the maximum in its last block.
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
    """The network with the weights in `path`, which the user knows as `weights`."""
    network = original_inception()
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = network.state_dict()
    surplus = [key for key in state if key not in expected]
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    if surplus or missing:
        raise UserError(f"{weights} is not the original Inception: {len(missing)} tensors are missing, {len(surplus)} unknown (first: "
                        f"{(missing + surplus)[0]}); give pt_inception-2015-12-05-6726825d.pth")
    network.load_state_dict(state, strict=False)  # whose shapes are checked all the same
    return network


def _scripted(path: str | Path) -> nn.Module:
    """The part of clean-fid's file that comes after its own resizing and normalization."""
    return torch.jit.load(path, map_location="cpu").layers
