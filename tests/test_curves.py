"""Curve detectors: stimuli by geometry, tuning of planted units, coverage worked out on paper, neurons that split."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import googlenet

from aircraft_sae.config import SAEConfig
from aircraft_sae.networks import Network
from aircraft_sae.networks.inception import InceptionV1
from aircraft_sae.pictures.curves import GREY, MIDDLE, Curves
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.studies import curves, tuning

ANGLES, MIDDLES = np.arange(0, 360, 5), slice(MIDDLE - 64, MIDDLE + 65, 2)


@pytest.fixture(scope="module")
def stimuli() -> Curves:
    return Curves()


def drawn(stimuli, **wanted) -> np.ndarray:
    """Ink (224, 224) of the first such stimulus."""
    table = stimuli.table
    for name, value in wanted.items():
        table = table[table[name] == value]
    return np.asarray(stimuli.picture(table["image"].iloc[0]))[..., 0].astype(float) - GREY


@pytest.mark.parametrize("angle", [0, 45, 200])
@pytest.mark.parametrize("radius", [20, 60])
def test_a_curve_passes_the_middle_and_bends_towards_its_angle(stimuli, angle, radius):
    """Its ink lies on the circle around the centre of curvature, has a line's length, and is as bright as dark."""
    ink = drawn(stimuli, kind="curve", angle=angle, radius=radius, contrast=1)
    rows, columns = np.nonzero(ink > 50)
    centre = MIDDLE + radius * np.cos(np.radians(angle)), MIDDLE - radius * np.sin(np.radians(angle))
    assert np.abs(np.hypot(columns - centre[0], rows - centre[1]) - radius).max() < 3 and ink[MIDDLE, MIDDLE] == 100
    line = drawn(stimuli, kind="line", angle=angle, contrast=1)
    assert ink.sum() == pytest.approx(line.sum(), rel=0.06)
    np.testing.assert_array_equal(drawn(stimuli, kind="curve", angle=angle, radius=radius, contrast=-1), -ink)


def test_a_corner_opens_towards_its_angle(stimuli):
    ink = drawn(stimuli, kind="corner", angle=0, contrast=1)
    assert (ink[[MIDDLE, MIDDLE + 12, MIDDLE - 12], [MIDDLE, MIDDLE + 12, MIDDLE + 12]] == 100).all()
    assert ink[MIDDLE, MIDDLE + 12] == 0 and not ink[:, : MIDDLE - 3].any()


def test_shifts_and_turns_are_those_of_the_table(stimuli):
    own = {"kind": "curve", "radius": 20, "contrast": 1}
    plain = drawn(stimuli, angle=0, right=0, down=0, **own)
    np.testing.assert_array_equal(drawn(stimuli, angle=0, right=2, **own)[:, 2:], plain[:, :-2])
    turned = drawn(stimuli, angle=90, right=0, down=0, **own)[1:, 1:]  # the middle is pixel 119 of 224
    np.testing.assert_array_equal(np.rot90(plain[15:, 15:]), turned[14:, 14:])
    assert len(stimuli.table) == stimuli.table["image"].nunique() and stimuli.fingerprint == Curves().fingerprint


def bumps(peaks, half_width=20.0):
    """Triangles that fall to 0.5 at half_width from their peaks: a function from angles (n, 1) to (n, d)."""
    peaks = np.array(peaks, float)
    return lambda angle: np.maximum(1 - np.abs((angle - peaks + 180) % 360 - 180) / (2 * half_width), 0)


def on_circle(*bump) -> np.ndarray:
    """(d, 72) tuning curves of `bumps`."""
    return bumps(*bump)(ANGLES[:, None] * 1.0).T


def planted(stimuli, curve_of, line=0.2) -> np.ndarray:
    """(pictures, d) responses: curve_of(angle) to curves, `line` times the best of these to lines, else 0."""
    table, best = stimuli.table, curve_of(ANGLES[:, None] * 1.0).max(0)
    values = np.zeros((len(table), len(best)))
    for kind, of in {"curve": curve_of, "line": lambda angle: line * best + 0 * angle}.items():
        own = (table["kind"] == kind).to_numpy()
        values[own] = of(table["angle"][own].to_numpy(float)[:, None])
    return values


def test_planted_detectors_get_their_angles_widths_and_gaps(stimuli):
    """Peaks within 3 degrees, coverage as on paper: triangles fall to 0 half way between peaks 80 degrees apart."""
    peaks = [0, 40, 80, 120, 200, 280]
    tuned, units = tuning.tuned(planted(stimuli, bumps(peaks)), stimuli.table)
    assert np.abs(units["peak"] - peaks).max() <= 3 and np.allclose(units["width"], 40, atol=1)
    assert (units["echo"] == 0).all() and (units["strongest"] == 1).all()
    assert tuning.detects(units, np.full(6, 0.9)).all() and not tuning.detects(units, np.full(6, 1.0)).any()
    off = [2, 43, 81, 122, 198, 283]  # between the stimuli's angles
    assert np.abs(tuning.tuned(planted(stimuli, bumps(off)), stimuli.table)[1]["peak"] - off).max() <= 3
    below = (np.abs((ANGLES[:, None] - np.array(peaks) + 180) % 360 - 180).min(1) > 20).mean()
    assert tuning.coverage(tuned) == {"minimum": 0.0, "below_half": pytest.approx(below), "gap": 80.0}
    assert tuning.coverage(on_circle(range(0, 360, 40))) == {"minimum": 0.5, "below_half": 0.0, "gap": 40.0}
    assert tuning.coverage(tuned[:0])["gap"] == 360
    assert tuning.coverage(on_circle([100, 120, 140]))["gap"] == 320, "the widest gap may span 0 degrees"


OTHERS = {
    "of lines": (bumps([90]), 0.9), "too wide": (bumps([90], 60), 0.2), "silent": (lambda angle: 0 * angle, 0.2),
    "both ways": (lambda angle: np.maximum(bumps([90])(angle), 0.5 * bumps([270])(angle)), 0.2),
}  # fmt: skip


@pytest.mark.parametrize(("curve_of", "line"), OTHERS.values(), ids=OTHERS)
def test_other_units_are_not_curve_detectors(stimuli, curve_of, line):
    units = tuning.tuned(planted(stimuli, curve_of, line), stimuli.table)[1]
    assert not tuning.detects(units, np.zeros(1)).any()


def test_pixel_templates_are_told_apart(stimuli):
    """Templates of curves detect curves at their angle; those of lines, corners, circles and brightness do not."""
    seen = [np.asarray(stimuli.picture(image))[MIDDLES, MIDDLES, 0].ravel() for image in stimuli.table["image"]]
    seen = np.stack(seen).astype(np.float32) - GREY

    def template(**of):
        ink = drawn(stimuli, right=0, down=0, contrast=1, **of)[MIDDLES, MIDDLES].ravel()
        return ink / np.linalg.norm(ink)

    wanted, filters = [30, 140, 250], []
    for angle in wanted:
        curve, line = template(kind="curve", angle=angle, radius=12), template(kind="line", angle=angle)
        filters.append(curve - line * (curve @ line))
    from_middle = np.hypot(*np.meshgrid(range(-64, 65, 2), range(-64, 65, 2))).ravel()
    filters += [template(kind="line", angle=30), template(kind="corner", angle=40)]
    filters += [(np.abs(from_middle - 20) < 2) / 10, np.ones(seen.shape[1])]
    values = seen @ np.stack(filters, 1)
    tuned, units = tuning.tuned(np.maximum(values - 0.4 * values.max(0), 0), stimuli.table)  # as after a bias and ReLU
    assert tuning.detects(units, np.zeros(7)).tolist() == [True] * 3 + [False] * 4, units
    assert np.abs(units["peak"][:3] - wanted).max() <= 5  # one step of the stimuli's angles
    middles = np.degrees(np.angle(tuned[:3] @ np.exp(1j * np.radians(ANGLES)))) % 360
    assert np.abs(middles - wanted).max() <= 3


def test_families_are_chosen_for_their_minimum_coverage():
    candidates = on_circle(np.random.default_rng(0).uniform(0, 360, 60), 30)
    candidates /= candidates.max(1, keepdims=True)
    chosen = tuning.family(candidates, 8)
    least = tuning.coverage(candidates[chosen])["minimum"]
    assert len(set(chosen)) == 8 and least > tuning.coverage(candidates[:8])["minimum"]
    assert least >= tuning.coverage(candidates[:20][tuning.family(candidates[:20], 8)])["minimum"]
    assert len(tuning.family(candidates[:3], 8)) == 3
    low, high = np.full(72, 0.3), np.r_[np.ones(71), 0.0]  # the second has the larger mean and the smaller minimum
    low[0] = 1
    assert tuning.family(np.stack([high, low]), 1).tolist() == [1]


def test_more_candidates_cover_more_and_an_equal_choice_removes_that():
    rng = np.random.default_rng(0)
    few, many = (on_circle(rng.uniform(0, 360, n), 15) for n in (12, 400))
    least = tuning.coverage(few)["minimum"]
    whole = tuning.coverage(many[tuning.family(many, tuning.LARGEST)])["minimum"]
    found = {n: tuning.equal_choice(many, n) for n in (12, 100)}
    assert whole > least + 0.3 and found[12]["candidates"] == 12
    assert found[12]["minimum"] < 0.1 < found[100]["minimum"] < whole
    assert tuning.equal_choice(few, 12) == {"candidates": 12, "minimum": least}
    assert tuning.equal_choice(few[:0], 12)["minimum"] == 0


def test_a_sum_of_two_detectors_has_two_modes_and_splits_into_them(stimuli):
    curve = np.zeros(72)
    curve[[0, 8, 30, 50]] = 1.0, 0.9, 0.6, 0.4  # the second is 40 degrees away, the last too low
    wide = np.convolve(np.tile(curve, 3), [0.3, 0.7, 1, 0.7, 0.3], "same")[72:144]
    assert tuning.modes(wide).tolist() == [0, 30] and tuning.modes(np.zeros(72)).size == 0
    features, table = planted(stimuli, bumps([40, 160, 280])), stimuli.table
    W_dec = np.array([[1.0, 0.0, 0.2], [0.8, 0.0, 0.0], [0.0, 1.0, 0.0]])
    neurons = features @ W_dec
    assert [len(tuning.modes(curve)) for curve in tuning.tuned(neurons, table)[0]] == [2, 1, 1]
    (found,) = tuning.split_neurons(neurons, features, W_dec, table).to_dict("records")
    assert (found["neuron"], found["carriers"], found["splits"], found["n_modes"]) == (0, [0, 1], True, 2)
    assert 0 < found["chance"] < 1
    swapped = tuning.split_neurons(neurons[:, ::-1], features, W_dec[:, ::-1], table)
    assert swapped["neuron"].tolist() == [2] and swapped["carriers"].tolist() == [[0, 1]]
    near = planted(stimuli, bumps([40, 55, 280]))  # neither carrier is where the neuron's second mode is
    moved = tuning.split_neurons(neurons, near, W_dec, table)
    assert len(moved["carriers"][0]) == 2 and not moved["splits"].any()
    third = planted(stimuli, lambda angle: np.hstack([bumps([40])(angle), bumps([160, 280])(angle).sum(1)[:, None]]))
    both = tuning.split_neurons(third @ np.ones((2, 1)), third, np.ones((2, 1)), table)  # one carrier has two modes
    assert both["carriers"].tolist() == [[1, 0]] and not both["splits"].any()
    double = planted(stimuli, lambda angle: bumps([40])(angle) + 0.8 * bumps([160])(angle))
    alone = tuning.split_neurons(double, double, np.ones((1, 1)), table)
    assert not alone["splits"].any() and alone["carriers"].tolist() == [[0]] and alone["chance"].tolist() == [0]


def test_googlenet_is_refused(tmp_path, stimuli):
    network = Network(googlenet(init_weights=False, aux_logits=False, num_classes=3), list("abc"))
    with pytest.raises(ValueError, match="3x3 kernels in its 5x5 branches"):
        curves.record_middle(tmp_path, network=network, pictures=stimuli, sites=["inception3b"])


def test_stimuli_lie_where_the_cell_that_is_read_sees(stimuli):
    """At each stride, for InceptionV1 with TensorFlow's padding and for a network with symmetric padding."""
    even = nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)))
    for model, sites in ((InceptionV1(3).eval(), ["conv2d2", "mixed3a", "mixed3b"]), (even, ["1", "2"])):
        network = Network(model, list("abc"))
        for site in sites:
            cell, stride = curves._cell(network, site), 224 // network.shape(site)[0]
            x = torch.rand(1, 3, 224, 224).requires_grad_()
            (gradient,) = torch.autograd.grad(network.see(x, [site]).acts[site][0, cell, cell].sum(), x)
            seen = gradient[0].abs().sum((0, 1))
            assert abs(float((seen * torch.arange(224)).sum() / seen.sum()) - MIDDLE) <= stride / 2 + 1, site


def test_the_middle_cell_of_each_stimulus_is_recorded(stimuli, tmp_path):
    network = Network(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 2, 3, 2, 1)), list("ab"))
    few, sites = stimuli.subset(range(0, 2500, 125), "few"), ["0", "1"]  # more than a batch
    curves.record_middle(tmp_path, network=network, pictures=few, sites=sites)
    x = torch.stack([network.as_input(few.picture(image)) for image in few.table["image"]])
    for site, acts in network.see(x, sites).acts.items():
        cell = curves._cell(network, site)
        wanted = acts[:, cell, cell].detach().numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{site}.npy"), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_usual_is_the_quantile_of_positive_activations(smoke_study):
    acts = smoke_study.activations()
    sae = SparseAutoencoder(SAEConfig(site=acts.site, expansion=4, k=2, variant="topk"), acts.d_in)
    cells = torch.cat(list(acts.blocks(acts.rows("test")))).flatten(0, 2)
    for unit, values in ((sae, sae.encode(cells).dense()), (None, cells)):
        wanted = [np.quantile(own[own > 0], tuning.QUANTILE) if (own > 0).any() else 0 for own in values.numpy().T]
        np.testing.assert_allclose(curves.usual(unit, acts), wanted, rtol=1e-5, atol=1e-6)
        assert np.any(wanted)


def test_patches_are_the_strongest_cells_of_pictures(smoke_study, tmp_path):
    network, pictures = smoke_study.network(), smoke_study.pictures()
    sae = SparseAutoencoder(SAEConfig(site="stem", k=2, expansion=1), network.shape("stem")[2])
    curves.find_patches(tmp_path, network=network, pictures=pictures, sae=sae, units=[0, 2])
    table, names = pd.read_parquet(tmp_path / "patches.parquet"), pictures.rows("test")["image"].tolist()
    x = torch.stack([network.as_input(pictures.picture(name)) for name in names])
    acts = network.see(x, ["stem"]).acts["stem"].detach()
    codes = sae.encode(acts.flatten(0, 2)).dense().view(*acts.shape[:3], -1).numpy()
    for unit in (0, 2):
        own = table[table["unit"] == unit]
        np.testing.assert_allclose(own["value"], np.sort(codes[..., unit].max((1, 2)))[::-1][:9], atol=1e-3)
        for row in own.itertuples():
            assert codes[names.index(row.image), row.row, row.column, unit] == pytest.approx(row.value, abs=1e-3)
    curves.find_patches(tmp_path, network=network, pictures=pictures, sae=sae, units=[])
    assert pd.read_parquet(tmp_path / "patches.parquet").empty
