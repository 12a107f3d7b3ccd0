"""Feature visualisation: units whose best picture is known."""

import numpy as np
import pytest
import torch
from torch import nn

from aircraft_sae.config import SAEConfig
from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.view.visualise import feature, maximise, middle


@pytest.fixture(scope="module")
def network() -> Network:
    """Two channels: how red the neighbourhood is, and vertical stripes with a period of eight pixels."""
    conv = nn.Conv2d(3, 2, 16, 4, 6, bias=False)
    across = torch.cos(torch.arange(16) * 2 * torch.pi / 8).expand(3, 16, 16)
    with torch.no_grad():
        conv.weight[0], conv.weight[1] = torch.tensor([1.0, -0.5, -0.5])[:, None, None] / 256, across / 256
    return Network(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), ["a", "b"], size=64)


def test_a_red_unit_gets_a_red_picture(network):
    pictures, reached = maximise(network, "0", middle(torch.tensor([1.0, 0.0])), size=64, steps=60)
    centre = pictures[:, 24:40, 24:40].astype(float).mean((1, 2))
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 64, 64, 3)
    assert (centre[:, 0] > centre[:, 1:].max(1) + 60).all() and (reached > 1).all()


def test_a_unit_for_stripes_gets_stripes(network):
    """Of the right direction and period, and far beyond the response to noise."""
    pictures, reached = maximise(network, "0", middle(torch.tensor([0.0, 1.0])), size=64, steps=60)
    noise = torch.rand(50, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (network.mean, network.std))
    usual = network.see((noise - mean) / std, ["0"]).acts["0"][..., 1].abs().amax().item()
    assert (reached > 2 * usual).all()
    profile = pictures[0, 24:40, 24:40].mean((0, 2))
    assert np.abs(np.fft.rfft(profile - profile.mean())).argmax() == 2
    assert np.ptp(profile) > 2 * np.ptp(pictures[0, 24:40, 24:40].mean((1, 2)))


def test_a_feature_reads_its_own_pre_activation():
    sae = SparseAutoencoder(SAEConfig(site="0", k=4, expansion=1, variant="topk"), 4)
    with torch.no_grad():
        sae.b_enc.normal_(), sae.b_dec.normal_()
    acts = torch.rand(3, 1, 1, 4) * 3
    codes = sae.encode(acts[:, 0, 0]).dense().detach()
    for j in range(4):
        torch.testing.assert_close(feature(sae, j)(acts).relu(), codes[:, j])


def test_diversity_keeps_pictures_apart(network):
    read = middle(torch.eye(network.shape("0")[2])[0])
    made = [maximise(network, "0", read, n=2, size=32, steps=40, diversity=weight)[0] for weight in (0.0, 50.0)]
    alike = [np.corrcoef(pictures.reshape(2, -1).astype(float))[0, 1] for pictures in made]
    assert alike[1] < alike[0]
