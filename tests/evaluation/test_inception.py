"""Inception features: those of clean-fid, torch-fidelity and torchmetrics on random weights, and wrong files by name."""

import numpy as np
import pytest
import torch
from torch import nn

from ldm.evaluation.inception import RESIZE, InceptionFeatures, original_inception, resize_clean, resize_tf
from ldm.util import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as pytorch-fid has it, with random weights under which borders matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = original_inception().state_dict()
        for key, value in state.items():
            if key.endswith(("bn.weight", "bn.bias", "bn.running_mean")):
                value.copy_(torch.rand(value.shape) + 0.5)
            elif key.endswith("conv.weight"):
                value.normal_(std=value[0].numel() ** -0.5)
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(state, path)
    return path


def test_features_are_those_of_the_network_that_clean_fid_ships(weights, monkeypatch):
    import cleanfid.inception_pytorch as theirs
    from cleanfid.resize import build_resizer

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    network = theirs.InceptionV3(resize_input=False, normalize_input=False).eval()
    pixels = torch.from_numpy(build_resizer("clean")(PHOTO)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network((pixels - 128) / 128)[0].flatten(1)
    found = InceptionFeatures(weights)([PHOTO])
    assert found.shape == (1, 2048) and found.dtype == np.float32 and found.std() > 0.01
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("protocol", ["tf", "torchmetrics"])
def test_features_are_those_of_torch_fidelity_and_of_torchmetrics(weights, protocol):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is in tests/requirements.txt")
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=protocol == "torchmetrics")
    with torch.no_grad():
        expected = network(torch.tensor(PHOTO).permute(2, 0, 1)[None])
    np.testing.assert_allclose(InceptionFeatures(weights, protocol)([PHOTO]), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_clean_resizing_is_clean_fids():
    from cleanfid.resize import build_resizer

    np.testing.assert_array_equal(resize_clean(PHOTO).permute(1, 2, 0).numpy(), build_resizer("clean")(PHOTO))


def test_tensorflows_grid_begins_at_the_first_pixel_without_half_a_pixels_shift():
    image = np.zeros((1, 2, 3), np.uint8)
    image[:, 1] = 150
    row = resize_tf(image)[0, 0]
    assert row[:3].tolist() == pytest.approx([0, 300 / 299, 600 / 299]) and row[150:].tolist() == [150.0] * 149


@pytest.mark.parametrize("protocol", RESIZE)
def test_one_colour_stays_as_it_is(protocol):
    assert torch.allclose(RESIZE[protocol](np.full((400, 20, 3), 77, np.uint8)), torch.full((3, 299, 299), 77.0), atol=1e-3)


def test_the_protocols_give_different_pictures():
    large = np.random.default_rng(1).integers(0, 256, (512, 512, 3), np.uint8)
    clean, tf, torchmetrics = (RESIZE[protocol](large) for protocol in ("clean", "tf", "torchmetrics"))
    assert min((clean - tf).abs().mean(), (clean - torchmetrics).abs().mean(), (tf - torchmetrics).abs().mean()) > 1
    assert tf.std() > torchmetrics.std()  # without antialiasing, noise stays


class Scripted(nn.Module):
    """As clean-fid's file: a resizing front, and `layers` behind it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.layers(x * 0)


def test_clean_fids_own_file_is_read_and_its_own_resizing_passed_over(tmp_path):
    torch.jit.save(torch.jit.script(Scripted()), tmp_path / "inception-2015-12-05.pt")
    features = InceptionFeatures(tmp_path / "inception-2015-12-05.pt")([np.full((9, 9, 3), value, np.uint8) for value in (0, 128, 255)])
    np.testing.assert_allclose(features, np.repeat([[-1], [0], [127 / 128]], 3, axis=1), atol=1e-6)


def test_wrong_files_are_refused_by_name(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "resnet.pth").read_bytes()[:200])
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    for name, words in (("none", "do not exist"), ("resnet", "is not the original Inception"), ("cut", "is damaged"),
                        ("page", "is an HTML page")):
        with pytest.raises(UserError, match=f"{name}.pth.*{words}"):
            InceptionFeatures(tmp_path / f"{name}.pth")
