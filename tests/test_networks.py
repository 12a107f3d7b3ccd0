"""Any CNN: what is seen at a site, what an edit changes, where the closed form holds."""

import threading

import pytest
import timm
import torch
import torchvision
from torch import nn

from aircraft_sae.networks import Network

SIZE = 64


class Plain(nn.Module):
    """Two convolutions with a tanh between: no closed form at `first`."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3, 4, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, n_classes)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()).mean((2, 3)))


def model(name, n_classes):
    """An untrained network, with weights that are large enough for a signal to reach the end."""
    torch.manual_seed(0)
    if name == "plain":
        return Plain(n_classes)
    if name == "googlenet":
        made = torchvision.models.googlenet(num_classes=n_classes, init_weights=False, aux_logits=False)
    else:
        arch = {"convnext": "test_convnext", "lite": "efficientnet_lite0"}[name]
        made = timm.create_model(arch, num_classes=n_classes)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    return made


MODELS = {name: model(name, n) for name, n in {"convnext": 5, "lite": 4, "googlenet": 4, "plain": 3}.items()}
SITES = [
    ("convnext", "stage4"), ("convnext", "stages.2.blocks.1"), ("lite", "blocks.4"), ("lite", "bn2"),
    ("googlenet", "inception4c"), ("googlenet", "inception4c:branch2"),
    ("googlenet", "inception5b"), ("plain", "first"), ("plain", "second"),
]  # fmt: skip


@pytest.fixture(params=SITES, ids=":".join)
def place(request):
    name, site = request.param
    return Network(MODELS[name], [], SIZE, name=name), site


@pytest.fixture
def x():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_see_records_the_modules_output(place, x):
    network, site = place
    path, _, group = site.partition(":")
    module, kept = network.model.get_submodule(network._path(path)), []
    handle = module.register_forward_hook(lambda _module, _given, out: kept.append(out.clone()))
    logits_ = network.model(x)
    handle.remove()
    seen = network.see(x, [site])
    assert torch.equal(seen.logits, logits_) and seen.acts[site].shape[1:] == network.shape(site)
    whole = kept[0].permute(0, 2, 3, 1)
    if not group:
        assert torch.equal(seen.acts[site], whole)
    else:  # the group is a run of the whole's channels
        d = network.shape(site)[2]
        starts = [i for i in range(whole.shape[3] - d + 1) if torch.equal(whole[..., i : i + d], seen.acts[site])]
        assert starts and 0 < d < whole.shape[3]


@torch.no_grad()
def test_an_edit_changes_what_follows_and_nothing_else(place, x):
    network, site = place
    plain = network.see(x, [site])
    same = network.see(x, [site], {site: lambda acts: acts})
    assert torch.allclose(same.logits, plain.logits, atol=1e-5)
    changed = network.see(x, [site], {site: lambda acts: acts.flip(3) * 2})
    assert torch.allclose(changed.acts[site], plain.acts[site].flip(3) * 2)
    assert not torch.allclose(changed.logits, plain.logits, atol=1e-4)
    assert torch.equal(network.see(x).logits, plain.logits)
    assert not any(module._forward_hooks for module in network.model.modules())


@torch.no_grad()
def test_continuing_from_stored_acts_gives_the_same(place, x):
    network, site = place
    plain = network.see(x, [site])
    start = None if network.can_start(site) else x
    again = network.see(start, [site], given={site: plain.acts[site]})
    assert torch.allclose(again.logits, plain.logits, atol=1e-4)
    edited = network.see(start, [site], {site: lambda acts: acts.flip(3)}, given={site: plain.acts[site]})
    both = network.see(x, [site], {site: lambda acts: acts.flip(3)})
    assert torch.allclose(edited.logits, both.logits, atol=1e-4)
    assert torch.allclose(edited.acts[site], both.acts[site], atol=1e-5)
    if start is not None:
        with pytest.raises(ValueError, match="give the pictures"):
            network.see(None, given={site: plain.acts[site]})


def test_plain_sequences_can_start_in_the_middle():
    starts = {(name, site): Network(MODELS[name], [], SIZE).can_start(site) for name, site in SITES}
    assert all(starts[key] for key in SITES if key[0] in ("convnext", "lite"))
    assert not any(starts[key] for key in SITES if key[0] in ("googlenet", "plain"))


def test_later_sites_are_seen_when_starting_in_the_middle(x):
    network = Network(MODELS["convnext"], [str(i) for i in range(5)], SIZE)
    with torch.no_grad():
        plain = network.see(x, ["stage2", "stage3", "stage4"])
        again = network.see(None, ["stage3", "stage4"], given={"stage2": plain.acts["stage2"]})
    assert set(again.acts) == {"stage3", "stage4"}
    assert torch.allclose(again.acts["stage4"], plain.acts["stage4"], atol=1e-4)


@torch.no_grad()
def test_the_closed_form_equals_a_forward_pass_and_exists_only_where_it_holds(place, x):
    network, site = place
    readout = network.readout(site)
    closed = {"stage4", "bn2", "inception5b", "second"}
    assert (readout is not None) == (site in closed)
    if readout is None:
        return
    acts = network.see(x, [site]).acts[site]
    assert torch.allclose(readout.logits(acts.mean((1, 2))), network.see(x).logits, atol=1e-4)
    directions, removed = torch.randn(2, acts.shape[3]), torch.rand(len(x), 2)
    edited = readout.edited(acts.mean((1, 2)), removed, directions)
    for j in range(2):
        edit = {site: lambda acts, j=j: acts - removed[:, j, None, None, None] * directions[j]}
        assert torch.allclose(edited[:, j], network.see(x, edits=edit).logits, atol=1e-3)


@torch.no_grad()
def test_no_closed_form_across_a_convolution_or_for_one_branch(x):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, 4), nn.Conv2d(3, 4, 3, 4)

        def forward(self, x):
            return torch.cat([self.one(x), self.two(x)], 1)

    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)
    network = Network(nn.Sequential(Branches(), nn.Conv2d(8, 8, 1), *end), list("abc"), SIZE)
    assert network.readout("1") is not None and network.readout("0") is None
    network = Network(nn.Sequential(Branches(), *end), list("abc"), SIZE)
    assert network.readout("0") is not None
    for site in ("0:two", "0.two"):  # the other branch depends on the picture
        assert network.readout(site) is None


class Cells(nn.Module):
    """A layer norm of each cell, before the mean."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Aside(nn.Module):
    """A second branch, which a black picture leaves at 0."""

    def __init__(self, share):
        super().__init__()
        self.main, self.aside, self.share = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(3, 8, 3, 4, bias=False), share
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm((self.main(x) + self.share * self.aside(x)).mean((2, 3))))


MEAN = nn.AdaptiveAvgPool2d(1), nn.Flatten()
ENDS = {
    "linear": (True, [*MEAN, nn.Linear(8, 3, bias=False)]),
    "norm": (True, [*MEAN, nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3)]),
    "norm of cells": (False, [Cells(), *MEAN, nn.Linear(8, 3)]),
    "two norms": (False, [Cells(), *MEAN, nn.LayerNorm(8), nn.Linear(8, 3)]),
    "ReLU": (False, [nn.ReLU(), *MEAN, nn.Linear(8, 3)]),
    "ReLU of means": (False, [*MEAN, nn.ReLU(), nn.Linear(8, 3)]),
    "hidden layer": (False, [*MEAN, nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)]),
    "maximum": (False, [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)]),
    "convolution": (False, [nn.Conv2d(8, 8, 3), *MEAN, nn.Linear(8, 3)]),
    "softmax": (False, [*MEAN, nn.Linear(8, 3), nn.Softmax(1)]),
}


@pytest.mark.parametrize("end", ENDS)
@torch.no_grad()
def test_a_closed_form_is_not_found_where_something_else_comes_between(end, x):
    """Nor where large biases hide it; an earlier norm of as many channels does not mislead."""
    torch.manual_seed(0)
    holds, layers = ENDS[end]
    for layer in layers:
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            layer.bias.copy_(torch.tensor([100.0, -50.0, 20.0]).repeat(3)[: len(layer.bias)])
            layer.weight.mul_(0.1)
        if isinstance(layer, nn.LayerNorm) and layer.bias is not None:
            layer.weight.uniform_(), layer.bias.uniform_()
    network = Network(nn.Sequential(nn.Conv2d(3, 8, 3, 4), Cells(), nn.Conv2d(8, 8, 1), *layers), list("abc"), SIZE)
    readout = network.readout("2")
    assert (readout is not None) == holds
    if holds:
        seen = network.see(x, ["2"])
        assert torch.allclose(readout.logits(seen.acts["2"].mean((1, 2))), seen.logits, atol=1e-5)


@torch.no_grad()
def test_a_closed_form_is_not_found_beside_another_branch(x):
    torch.manual_seed(0)
    assert Network(Aside(0), list("abc"), SIZE).readout("main") is not None
    assert Network(Aside(0.1), list("abc"), SIZE).readout("main") is None


def test_gradients_flow(place, x):
    network, site = place
    x.requires_grad_()
    network.see(x, [site]).acts[site].sum().backward()
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_threads_do_not_see_each_other(place, x):
    network, site = place
    plain, found = network.see(x, [site]).logits, []

    def look(edits):
        with torch.no_grad():
            found.extend((bool(edits), network.see(x, [site], edits).logits) for _ in range(5))

    threads = [threading.Thread(target=look, args=({} if i % 2 else {site: torch.zeros_like},)) for i in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    zeroed = network.see(x, edits={site: torch.zeros_like}).logits
    assert len(found) == 20
    assert all(torch.allclose(got, zeroed if edited else plain, atol=1e-4) for edited, got in found)


def test_streams_give_batches_in_order(x):
    network = Network(MODELS["plain"], list("abc"), SIZE)
    batches = [x + i for i in range(7)]
    with torch.no_grad():
        one_by_one = [network.see(batch, ["first"]) for batch in batches]
    for seen, alone in zip(network.stream(batches, ["first"]), one_by_one, strict=True):
        assert torch.allclose(seen.logits, alone.logits, atol=1e-5)
        assert torch.allclose(seen.acts["first"], alone.acts["first"], atol=1e-5)
    for seen, alone in zip(network.stream(batches, ["first"], logits=False), one_by_one, strict=True):
        assert seen.logits.shape == (3, 0) and torch.allclose(seen.acts["first"], alone.acts["first"], atol=1e-5)


@pytest.mark.parametrize(("name", "site", "words"), [
    ("convnext", "stage9", "stage4"), ("convnext", "", "did you mean"), ("lite", "block.4", "blocks.4"),
    ("googlenet", "inception4c:branch9", "inception4c:branch"),
])  # fmt: skip
def test_an_unknown_site_is_refused_with_similar_names(name, site, words):
    network = Network(MODELS[name], [], SIZE)
    with pytest.raises(ValueError, match=words):
        network.check_site(site)
    with pytest.raises(ValueError, match="no site"):
        network.see(torch.zeros(1, 3, SIZE, SIZE), [site])


def test_bad_edits_and_sites_without_maps_are_refused(x):
    network = Network(MODELS["plain"], list("abc"), SIZE)
    with pytest.raises(ValueError, match="gives"):
        network.see(x, edits={"first": lambda acts: acts[..., :2]})
    with pytest.raises(ValueError, match="no maps"):
        network.see(x, ["last"])
    assert not any(module._forward_hooks for module in network.model.modules())


def test_permuting_keeps_each_tensors_values(x):
    network = Network(MODELS["convnext"], [str(i) for i in range(5)], SIZE)
    permuted = network.permuted()
    for a, b in zip(network.model.parameters(), permuted.model.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert permuted.name == "permuted" and permuted.fingerprint != network.fingerprint
    assert network.permuted().fingerprint == permuted.fingerprint != network.permuted(1).fingerprint
