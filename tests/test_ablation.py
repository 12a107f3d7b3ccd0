"""Suppression: the closed form against the forward pass, changes of nothing, and effects by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from aircraft_sae.ablation import PooledHead, effects, matched_features, random_directions, suppress_all


@pytest.fixture(scope="module")
def classifier(smoke_study):
    """The smoke study's, its head's LayerNorm no longer the identity."""
    made = smoke_study.classifier()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.model.head.norm.weight.copy_(1 + 0.3 * torch.randn(made.model.num_features, generator=generator))
        made.model.head.norm.bias.copy_(0.3 * torch.randn(made.model.num_features, generator=generator))
    return made


@pytest.fixture(scope="module")
def edit(classifier):
    """acts (10, d_in, 2, 2), feature activations (10, 2, 2, 6), directions (6, d_in), labels."""
    generator = torch.Generator().manual_seed(1)
    d_in = classifier.model.num_features
    acts = 0.5 + torch.randn(10, d_in, 2, 2, generator=generator)
    features = torch.randn(10, 2, 2, 6, generator=generator).relu()
    labels = torch.arange(10) % len(classifier.classes)
    return acts, features, torch.randn(6, d_in, generator=generator), labels


@pytest.mark.parametrize("factor", [0.0, 0.5, 4.0])
def test_the_closed_form_is_the_forward_pass(classifier, edit, factor):
    acts, features, directions, labels = edit
    head = PooledHead.of(classifier)
    removed = (1 - factor) * features.mean((1, 2))
    with torch.inference_mode():
        before = classifier.logits_from("stage4", acts).cpu()
        torch.testing.assert_close(head.logits(acts.mean((2, 3))), before, rtol=1e-5, atol=1e-5)
        got = suppress_all(head, acts.mean((2, 3)), removed, directions, labels)
        for j, d in enumerate(directions):
            edited = acts - (1 - factor) * (features[..., j, None] * d).permute(0, 3, 1, 2)
            after = classifier.logits_from("stage4", edited).cpu()
            torch.testing.assert_close(
                head.edited(acts.mean((2, 3)), removed, directions)[:, j], after, rtol=1e-5, atol=1e-5
            )
            for name, effect in effects(before, after, labels).items():
                np.testing.assert_allclose(got[name][:, j], effect, atol=1e-5)
    assert max(np.abs(effect).max() for effect in got.values()) > 0.01


def test_suppressing_nothing_changes_nothing(classifier, edit):
    acts, features, directions, labels = edit
    head = PooledHead.of(classifier)
    for removed, d in ((torch.zeros(10, 6), directions), (features.mean((1, 2)), torch.zeros_like(directions))):
        got = suppress_all(head, acts.mean((2, 3)), removed, d, labels)
        assert all((effect == 0).all() for effect in got.values())


def test_effects_by_hand():
    before, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 0])
    after = torch.tensor([[1.0, 1.0, 3.0], [0.0, 0.0, 0.5]])
    got = effects(before, after, labels)
    assert got["logit"].tolist() == [-2, 0]
    assert got["margin"].tolist() == [-3, 1]  # the rival is class 2 for the first, class 1 for the second
    assert got["specificity"].tolist() == [-2.5, 0.5]
    wanted = [after[i].softmax(0)[0] - before[i].softmax(0)[0] for i in range(2)]
    torch.testing.assert_close(got["confidence"], torch.stack(wanted))
    wide = effects(before, torch.stack([after, before], 1), labels)
    assert wide["margin"].tolist() == [[-3, 0], [1, 0]]
    other = effects(before, after, labels, rival=torch.tensor([1, 2]))
    assert other["margin"].tolist() == [-2, 0]


def test_a_head_with_a_hidden_layer_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(classifier.model.head, "pre_logits", nn.Linear(4, 4))
    with pytest.raises(ValueError, match="this has more"):
        PooledHead.of(classifier)


def test_matched_features_are_alike_and_never_the_same():
    rng = np.random.default_rng(0)
    density, strength = rng.uniform(0.001, 0.2, 300), rng.uniform(1, 3, 300)
    density[:3], strength[3] = [0, 0.9, 0.1], 1000
    partner = matched_features(pd.DataFrame({"density_cell": density}), strength)
    assert partner[0] == partner[1] == partner[3] == -1  # dead, too dense, too strong
    has = partner >= 0
    assert has.mean() > 0.9 and (partner != np.arange(300)).all()
    for values in (density, strength):
        assert (np.abs(values[partner[has]] / values[has] - 1) <= 0.25).all()
    again = matched_features(pd.DataFrame({"density_cell": density}), strength)
    assert (again == partner).all()


def test_random_directions_have_the_given_lengths_and_spread():
    like = torch.full((4000, 3), 2.0)
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    drawn = random_directions(like, covariance)
    torch.testing.assert_close(drawn.norm(dim=1), like.norm(dim=1))
    assert drawn[:, 2].abs().max() < 1e-6 and drawn[:, 0].square().mean() > 1.5 * drawn[:, 1].square().mean()
    assert torch.equal(drawn, random_directions(like, covariance)) and not torch.equal(
        drawn, random_directions(like, covariance, seed=1)
    )
