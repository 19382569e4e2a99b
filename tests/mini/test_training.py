"""The optimizer and the loop of the miniature's trainings."""

from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from ldm.mini.autoencoder_stage import FACE_WEIGHT, LANDMARK_WEIGHT, weighted
from ldm.mini.decoder_stage import aligned_faces
from ldm.mini.face_renders import aligned
from ldm.mini.muon import Muon, orthogonalized
from ldm.mini.renders import ANONYMOUS, COUNT, NAMED
from ldm.mini.stage import train_stage


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalized_keeps_the_directions_and_levels_the_singular_values(shape):
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    found = left.T @ orthogonalized(left @ values.diag() @ right) @ right.T
    assert (found.diagonal() > 0.5).all() and (found.diagonal() < 1.3).all()
    assert (found - found.diagonal().diag()).abs().max() < 0.1


def test_muon_updates_vectors_as_adamw_does():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    muon = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    for scale in (1.0, -3.0, 0.5):
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = scale * parameter.detach().square()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_an_update_of_a_kernel_has_the_size_of_adamws():
    kernel = nn.Parameter(torch.zeros(32, 16, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    Muon([kernel], lr=1.0, weight_decay=0.0).step()
    assert kernel.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("muon", [False, True])
def test_a_killed_stage_resumes_to_the_same_bytes(muon, tmp_path):
    def trained(folder, killed_at=None):
        torch.manual_seed(0)
        net, steps = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 1)), count()

        def loss_of(step):
            if next(steps) == killed_at:
                raise KeyboardInterrupt
            points = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
            return (net(points) - points.sum(1, keepdim=True)).square().mean(), {}

        return train_stage("net", net, loss_of, steps=6, lr=0.01, work_dir=folder, save_seconds=0.0, muon=muon)

    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    expected = trained(tmp_path / "once")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", killed_at=3)
    for one, other in zip(expected.parameters(), trained(tmp_path / "twice").parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_autoencoder_weighs_faces_more_and_their_landmarks_most():
    _, weight, _ = weighted(COUNT + NAMED)
    assert weight[0, 0] == weight.min() == 1 and weight.max() == 1 + FACE_WEIGHT + LANDMARK_WEIGHT
    assert 0.03 < (weight == weight.max()).mean() < 0.15
    assert (weighted(COUNT + NAMED + ANONYMOUS)[1] == 1).all()


def test_the_decoder_stage_aligns_faces_as_the_recogniser_was_trained():
    (face, _, landmarks), (scene, _, nothing) = weighted(COUNT + NAMED), weighted(COUNT + NAMED + ANONYMOUS)
    images = torch.from_numpy(np.stack([scene, face])).permute(0, 3, 1, 2).float().requires_grad_()
    found = aligned_faces(images, [nothing, landmarks])
    assert found.shape == (1, 3, 112, 112)
    difference = np.abs(found[0].detach().permute(1, 2, 0).numpy() - aligned(face, landmarks))[4:-4, 4:-4]   # edges are padded otherwise
    assert difference.mean() < 0.5
    found.sum().backward()
    assert images.grad[1].abs().sum() > 0 and not images.grad[0].any()
