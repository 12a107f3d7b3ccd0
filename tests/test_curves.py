"""Curve detectors: stimuli by geometry, tuning of planted units, coverage on paper, neurons that split."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import googlenet

from aircraft_sae.config import SAEConfig
from aircraft_sae.networks import Network
from aircraft_sae.networks.inception import InceptionV1
from aircraft_sae.pictures.curves import GREY, MIDDLE, Curves
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.studies import curves
from aircraft_sae.studies.tuning import (
    LARGEST,
    Tuning,
    alike,
    by_kind,
    contour_agreement,
    contour_angles,
    coverage,
    equal_choice,
    family,
    modes,
    split,
)  # fmt: skip

ANGLES, MIDDLES = np.arange(0, 360, 5), slice(MIDDLE - 64, MIDDLE + 65, 2)


class Squares(torch.nn.Module):
    def forward(self, x):
        return x**2


@pytest.fixture(scope="module")
def stimuli() -> Curves:
    return Curves()


def drawn(stimuli, **wanted) -> np.ndarray:
    """Ink of the first such picture, (224, 224)."""
    table = stimuli.table
    for name, value in wanted.items():
        table = table[table[name] == value]
    return np.asarray(stimuli.picture(table["image"].iloc[0]))[..., 0].astype(float) - GREY


@pytest.mark.parametrize("angle", [0, 45, 90, 200])
@pytest.mark.parametrize("radius", [20, 60])
def test_a_curve_passes_the_middle_and_bends_towards_its_angle(stimuli, angle, radius):
    """Its ink lies on the circle about the centre of curvature, is as long for each radius, and as bright as dark."""
    ink = drawn(stimuli, kind="curve", angle=angle, radius=radius, contrast=1)
    rows, columns = np.nonzero(ink > 50)
    centre = MIDDLE + radius * np.cos(np.radians(angle)), MIDDLE - radius * np.sin(np.radians(angle))
    assert np.abs(np.hypot(columns - centre[0], rows - centre[1]) - radius).max() < 3 and ink[MIDDLE, MIDDLE] == 100
    line = drawn(stimuli, kind="line", angle=angle, contrast=1)
    assert ink.sum() == pytest.approx(line.sum(), rel=0.06)
    np.testing.assert_array_equal(drawn(stimuli, kind="curve", angle=angle, radius=radius, contrast=-1), -ink)


def test_shifts_and_turns_are_those_of_the_table(stimuli):
    own = {"kind": "curve", "radius": 20, "contrast": 1}
    plain = drawn(stimuli, angle=0, right=0, down=0, **own)
    np.testing.assert_array_equal(drawn(stimuli, angle=0, right=2, **own)[:, 2:], plain[:, :-2])
    turned = drawn(stimuli, angle=90, right=0, down=0, **own)[1:, 1:]  # the middle is pixel 119 of 224
    np.testing.assert_array_equal(np.rot90(plain[15:, 15:]), turned[14:, 14:])
    assert len(stimuli.table) == stimuli.table["image"].nunique() and stimuli.fingerprint == Curves().fingerprint


def planted(stimuli, curve_of, line=0.2) -> np.ndarray:
    """(pictures, d) responses: curve_of(angle, d) to curves, `line` times its best to lines, nothing to others."""
    table, best = stimuli.table, curve_of(ANGLES[:, None] * 1.0).max(0)
    values = np.zeros((len(table), len(best)))
    for kind, of in {"curve": curve_of, "line": lambda angle: line * best + 0 * angle}.items():
        own = (table["kind"] == kind).to_numpy()
        values[own] = of(table["angle"][own].to_numpy(float)[:, None])
    return values


def bumps(peaks, half_width=20.0):
    """Triangles, 0.5 at half their width from the peak."""
    away = lambda angle: np.abs((angle - np.array(peaks, float) + 180) % 360 - 180)  # noqa: E731
    return lambda angle: np.maximum(1 - away(angle) / (2 * half_width), 0)


def test_planted_detectors_get_their_angles_widths_and_gaps(stimuli):
    """Six at known angles: peaks within 3 degrees, and coverage as on paper."""
    peaks = [0, 40, 80, 120, 200, 280]
    tuning = Tuning.of(planted(stimuli, bumps(peaks)), stimuli.table)
    assert np.abs(tuning.peak - peaks).max() <= 3 and np.allclose(tuning.width, 40, atol=1) and (tuning.echo == 0).all()
    assert tuning.detects(np.full(6, 0.9)).all() and not tuning.detects(np.full(6, 1.0)).any()
    off = [2, 43, 81, 122, 198, 283]  # between the angles of stimuli
    assert np.abs(Tuning.of(planted(stimuli, bumps(off)), stimuli.table).peak - off).max() <= 3
    # half way between neighbours 80 degrees apart the triangles have come down to 0; of 40 to 0.5
    away = np.abs((ANGLES[:, None] - np.array(peaks) + 180) % 360 - 180).min(1)
    below = (away > 20).sum()
    assert coverage(tuning.curves) == {"minimum": 0.0, "below_half": pytest.approx(below / 72), "gap": 80.0}
    assert coverage(tuning.curves[:0])["gap"] == 360
    dense = Tuning.of(planted(stimuli, bumps(range(0, 360, 40))), stimuli.table)
    assert coverage(dense.curves) == {"minimum": 0.5, "below_half": 0.0, "gap": 40.0}


def test_a_unit_that_answers_more_to_gratings_must_answer_to_curves_as_in_pictures(stimuli):
    values = planted(stimuli, bumps([90]))
    values[(stimuli.table["kind"] == "grating").to_numpy()] = 9.0
    tuning = Tuning.of(values, stimuli.table)
    assert tuning.detects(np.array([0.9])).all() and not tuning.detects(np.array([1.1])).any()


@pytest.mark.parametrize("what", ["line", "wide", "both ways", "never"])
def test_what_is_no_curve_detector_is_not_called_one(stimuli, what):
    away = {
        "line": (bumps([90]), 0.9), "wide": (bumps([90], 60), 0.2),
        "never": (lambda angle: bumps([90])(angle) * 0, 0.2),
        "both ways": (lambda angle: np.maximum(bumps([90])(angle), 0.5 * bumps([270])(angle)), 0.2),
    }  # fmt: skip
    assert not Tuning.of(planted(stimuli, *away[what]), stimuli.table).detects(np.zeros(1)).any()


def test_filters_of_pixels_are_told_apart(stimuli):
    """Templates of curves detect curves at their angle; of lines, corners, circles and brightness they do not."""
    table = stimuli.table
    seen = np.stack([np.asarray(stimuli.picture(image))[MIDDLES, MIDDLES, 0] for image in table["image"]]).reshape(
        len(table), -1
    )
    seen = seen.astype(np.float32) - GREY

    def template(of, against=None):
        own = {"right": 0, "down": 0, "contrast": 1} | of
        ink = drawn(stimuli, **own)[MIDDLES, MIDDLES].ravel()
        ink = ink / np.linalg.norm(ink)
        if against is not None:
            ink = ink - against * (ink @ against) / (against @ against)
        return ink

    filters, wanted = [], []
    for angle in (30, 140, 250):
        curve = {"kind": "curve", "angle": angle, "radius": 12}
        away = template({"kind": "line", "angle": angle})
        filters.append(template(curve, away))
        wanted.append(angle)
    filters += [
        template({"kind": "line", "angle": 30}),
        template({"kind": "circle", "radius": 20}),
        template({"kind": "corner", "angle": 40, "radius": 20}),
        np.ones(seen.shape[1]),
    ]
    values = seen @ np.stack(filters, 1)
    tuning = Tuning.of(np.maximum(values - 0.6 * values.max(0), 0), table)  # as a unit's bias has it
    found = tuning.detects(np.zeros(len(filters)))
    assert found.tolist() == [True] * 3 + [False] * 4, (tuning.width, tuning.echo, tuning.beyond_line)
    assert np.abs(tuning.peak[:3] - wanted).max() <= 5  # a step of the stimuli's angles
    middles = np.degrees(np.angle(tuning.curves[:3] @ np.exp(1j * np.radians(ANGLES)))) % 360
    assert np.abs(middles - wanted).max() <= 3


def test_families_are_chosen_for_their_least_coverage():
    """Greedy, and never worse in its minimum than the first m; more candidates fill more gaps."""
    rng = np.random.default_rng(0)
    candidates = bumps(rng.uniform(0, 360, 60), 30)(ANGLES[:, None] * 1.0).T
    candidates /= candidates.max(1, keepdims=True)
    chosen = family(candidates, 8)
    assert len(set(chosen)) == 8 and coverage(candidates[chosen])["minimum"] > coverage(candidates[:8])["minimum"]
    assert coverage(candidates[chosen])["minimum"] >= coverage(candidates[:20][family(candidates[:20], 8)])["minimum"]
    assert len(family(candidates[:3], 8)) == 3
    low, high = np.full(72, 0.3), np.r_[np.ones(71), 0.0]  # the second's mean is larger, its minimum is not
    low[0] = 1
    assert family(np.stack([high, low]), 1).tolist() == [1]


def test_the_widest_gap_may_be_across_zero_degrees():
    assert coverage(bumps([100, 120, 140])(ANGLES[:, None] * 1.0).T)["gap"] == 320


def test_a_sum_of_two_detectors_has_two_modes_and_splits(stimuli):
    """Into the features that it was made of; a neuron with one mode is left out, and noise does not split."""
    features = planted(stimuli, bumps([40, 160, 280]))
    W_dec = np.array([[1.0, 0.0, 0.2], [0.8, 0.0, 0.0], [0.0, 1.0, 0.0]])
    neurons = features @ W_dec
    assert [len(modes(curve)) for curve in Tuning.of(neurons, stimuli.table).curves] == [2, 1, 1]
    found = split(neurons, features, W_dec, stimuli.table)
    assert (
        found["neuron"].tolist() == [0]
        and found["carriers"].tolist() == [[0, 1]]
        and found["splits"].tolist() == [True]
    )
    third = planted(stimuli, lambda angle: np.hstack([bumps([40])(angle), bumps([160, 280])(angle).sum(1)[:, None]]))
    elsewhere = np.array([[1.0, 0.0, 0.2], [0.8, 0.0, 0.0], [0.0, 1.0, 0.0]])
    near = planted(stimuli, bumps([40, 55, 280]))  # neither is where the neuron's second mode is
    moved = split(neurons, near, elsewhere, stimuli.table)
    assert len(moved["carriers"][0]) == 2 and not moved["splits"].any()
    both = split(third @ np.ones((2, 1)), third, np.ones((2, 1)), stimuli.table)  # into one of two modes: no split
    assert both["carriers"].tolist() == [[1, 0]] and not both["splits"].any()
    of_second = split(neurons[:, ::-1], features, W_dec[:, ::-1], stimuli.table)
    assert of_second["neuron"].tolist() == [2] and of_second["carriers"].tolist() == [[0, 1]]
    double = planted(stimuli, lambda angle: bumps([40])(angle) + 0.8 * bumps([160])(angle))
    alone = split(double, double, np.ones((1, 1)), stimuli.table)
    assert not alone["splits"].any() and alone["carriers"].tolist() == [[0]]


def test_modes_are_apart_and_high_enough():
    curve = np.zeros(72)
    for at, height in ((0, 1.0), (8, 0.9), (30, 0.6), (50, 0.4)):  # 40 degrees from the first; 150; too low
        curve[at] = height
    wide = np.convolve(np.tile(curve, 3), [0.3, 0.7, 1, 0.7, 0.3], "same")[72:144]
    assert modes(wide).tolist() == [0, 30] and modes(np.zeros(72)).size == 0


def test_contours_of_a_disc_point_inwards():
    rows, columns = np.mgrid[:112, :112] - 55.5
    angles = contour_angles(np.hypot(rows, columns) < 40, (14, 14))
    y, x = np.mgrid[:14, :14] - 6.5
    known = np.isfinite(angles)
    inwards = np.degrees(np.arctan2(y, -x)) % 360
    assert 20 < known.sum() < 80
    assert (np.abs((angles - inwards + 180) % 360 - 180)[known] < 12).all()


def test_googlenet_is_refused(tmp_path, stimuli):
    other = Network(googlenet(init_weights=False, aux_logits=False, num_classes=3), list("abc"))
    with pytest.raises(ValueError, match="3x3 kernels in its 5x5 branches"):
        curves.see_middle(tmp_path, network=other, pictures=stimuli, sites=["inception3b"])


def test_the_middle_is_what_the_network_gives_there(tmp_path, stimuli):
    network, few = Network(InceptionV1(4), list("abcd"), size=64), stimuli.subset(range(20), "few")
    curves.see_middle(tmp_path, network=network, pictures=few, sites=["conv2d2"])
    found = np.load(tmp_path / "conv2d2.npy")
    x = network.as_input(Image.fromarray(np.asarray(few.picture("00007"))))
    np.testing.assert_allclose(found[7], network.see(x[None], ["conv2d2"]).acts["conv2d2"].detach()[0, 8, 8], atol=1e-4)


def test_contours_tell_whether_a_detector_sees_curves_in_pictures():
    """A unit whose activation by contour angle is its tuning fits at no other turn; one that is turned does not."""
    own = bumps([40, 200])(ANGLES[:, None] * 1.0).T
    seen = own[:, ::2].copy()
    seen[:, 5] = np.nan
    found, p = contour_agreement(own, seen)
    assert np.allclose(found, 1) and np.allclose(p, 1 / 36)
    turned, p = contour_agreement(own, np.roll(seen, 9, 1))
    assert (turned < 0.2).all() and (p > 0.2).all()
    assert np.isnan(contour_agreement(own, seen * np.nan)[0]).all()


def test_units_are_seen_in_pictures_and_only_what_is_asked_is_kept(smoke_study, tmp_path):
    """Patches are the cells of the largest activation; agreement is that with means at cells on the outline."""
    network, pictures, rng = smoke_study.network(), smoke_study.pictures(), np.random.default_rng(0)
    d = network.shape("stem")[2]
    sae = SparseAutoencoder(SAEConfig(site="stem", k=2, expansion=1), d)
    tuned = {"neurons": rng.random((d, 72)), "features": rng.random((d, 72))}
    for name, each in tuned.items():
        np.save(tmp_path / f"tuning_{name}.npy", each)
    units = {"neurons": [3, 1], "features": [0, 2]}
    given = {"network": network, "site": "stem", "pictures": pictures, "tuning": tmp_path, "saes": {"features": sae}}
    curves.see_pictures(tmp_path, units=units, n_patches=4, **given)
    table, contours = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("patches", "contours"))
    names = pictures.rows("test")["image"].tolist()
    x = torch.stack([network.as_input(pictures.picture(name)) for name in names])
    acts = network.see(x, ["stem"]).acts["stem"].detach()
    codes = sae.encode(acts.flatten(0, 2)).dense().detach().view(*acts.shape[:3], -1)
    angles = np.stack([contour_angles(pictures.mask(name) > 0, acts.shape[1:3]) for name in names])
    bins = np.where(np.isfinite(angles), np.round(np.nan_to_num(angles) / 10) % 36, -1)
    for name, values in {"neurons": acts.numpy(), "features": codes.numpy()}.items():
        for unit in units[name]:
            own = table[(table["dictionary"] == name) & (table["unit"] == unit)]
            np.testing.assert_allclose(own["value"], np.sort(values[..., unit].max((1, 2)))[::-1][:4], atol=1e-3)
            for row in own.itertuples():
                assert values[names.index(row.image), row.row, row.column, unit] == pytest.approx(row.value, abs=1e-3)
            means = [values[bins == b, unit].mean() if (bins == b).any() else np.nan for b in range(36)]
            correlation, p = contour_agreement(tuned[name][[unit]], np.array([means]))
            got = contours[(contours["dictionary"] == name) & (contours["unit"] == unit)].iloc[0]
            np.testing.assert_allclose([got["correlation"], got["p"]], [correlation[0], p[0]], atol=1e-3)


def test_a_suppressed_family_is_missed_where_it_answers(stimuli, tmp_path):
    """Features that are silent are not missed; others are, by all that they answer to."""
    network = Network(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8, 1), torch.nn.Conv2d(4, 5, 1)), list("abcde"))
    few = stimuli.subset(np.flatnonzero(stimuli.table["kind"].isin(["curve", "line"]))[::97], "few")
    sae = SparseAutoencoder(SAEConfig(site="0", k=2, expansion=2), 4)
    given = {"network": network, "site": "0", "after": "1", "sae": sae, "pictures": few}
    for bias, families in ((-1e9, {"two": [0, 1]}), (1.0, {"all": range(8), "two": [0, 1]})):
        with torch.no_grad():
            sae.b_enc.fill_(bias)
        curves.suppress_families(tmp_path, families=families, **given)
        lost = pd.read_parquet(tmp_path / "lost.parquet").set_index(["family", "kind"])
        assert set(lost.index.unique("kind")) == {"curve", "line"} and (lost.loc[("two", "curve"), "n"] > 10)
        assert (lost["value"] == 0).all() if bias < 0 else (lost.loc["all", "value"] > 0.05).all()


def test_what_a_family_adds_is_taken_away(stimuli, tmp_path):
    """Of an autoencoder that is exact, all features: nothing is left; a later site loses all that it made of them."""
    network = Network(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 8, 1), torch.nn.ReLU(), Squares()), list("abcd"))
    sae = SparseAutoencoder(SAEConfig(site="1", k=4, expansion=1, variant="topk"), 4)
    with torch.no_grad():
        sae.W_enc_rows.copy_(torch.eye(4)), sae.W_dec.copy_(torch.eye(4)), sae.b_enc.zero_(), sae.b_dec.zero_()
    given = {"network": network, "site": "1", "after": "2", "sae": sae, "pictures": stimuli.every(97)}
    curves.suppress_families(tmp_path, families={"all": range(4), "none": []}, **given)
    lost = pd.read_parquet(tmp_path / "lost.parquet").set_index("family")["value"].dropna()  # a kind may be unseen
    np.testing.assert_allclose(lost["all"], 1, rtol=1e-5)
    assert (lost["none"] == 0).all()


def test_margins_are_cut_only_where_the_middle_does_not_see_them():
    """Of early layers most of a picture can be cut off; of late ones nothing."""
    network = Network(InceptionV1(3).eval(), list("abc"), mean=(0.5,) * 3, std=(0.01,) * 3)
    assert curves._margin(network, ["conv2d2", "mixed3b"]) == 48 and curves._margin(network, ["mixed4e"]) == 0


def test_members_of_a_family_are_alike_when_turned(stimuli):
    tuned = bumps([0, 90, 200])(ANGLES[:, None] * 1.0).T
    assert alike(tuned) == pytest.approx(1, abs=0.02) and np.isnan(alike(tuned[:1]))
    wide = bumps([0], 60)(ANGLES[:, None] * 1.0).T
    assert alike(np.vstack([tuned[:1], wide])) < 0.95
    shares = by_kind(planted(stimuli, bumps([90]), 0.4), stimuli.table)
    assert shares["curve"] == 1 and shares["line"] == pytest.approx(0.4) and shares["corner"] == 0


def test_what_is_usual_is_the_quantile_of_positive_activations(smoke_study):
    acts = smoke_study.activations()
    sae = SparseAutoencoder(SAEConfig(site=acts.site, expansion=4, k=2, variant="topk"), acts.d_in)
    cells = torch.cat(list(acts.blocks(acts.rows("test")))).flatten(0, 2)
    for unit, values in ((sae, sae.encode(cells).dense().detach()), (None, cells)):
        wanted = [np.quantile(own[own > 0], curves.QUANTILE) if (own > 0).any() else 0 for own in values.numpy().T]
        np.testing.assert_allclose(curves.usual(unit, acts), wanted, rtol=1e-5, atol=1e-6)
        assert 0 < np.mean(np.array(wanted) > 0)


def test_who_has_more_to_choose_from_covers_more_and_an_equal_choice_takes_that_away():
    rng = np.random.default_rng(0)
    few, many = (bumps(rng.uniform(0, 360, n), 15)(ANGLES[:, None] * 1.0).T for n in (12, 400))
    assert coverage(many[family(many, LARGEST)])["minimum"] > coverage(few)["minimum"] + 0.3
    told = equal_choice(many, 12)
    assert told["candidates"] == 12 and told["low"] <= coverage(few)["minimum"] <= told["high"] < 0.3
    assert equal_choice(few, 12) == {"candidates": 12} | dict.fromkeys(
        ("minimum", "low", "high"), coverage(few)["minimum"]
    )
    assert equal_choice(few[:0], 12)["minimum"] == 0


def test_stimuli_lie_where_the_cell_that_is_read_sees(stimuli):
    """At each stride: of InceptionV1, whose padding is TensorFlow's, and of a network whose padding is symmetric."""
    even = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)))
    for model, sites in ((InceptionV1(3).eval(), ["conv2d2", "mixed3a", "mixed3b"]), (even, ["1", "2"])):
        network = Network(model, list("abc"))
        for site in sites:
            cell, stride = curves._cell(network, site), 224 // network.shape(site)[0]
            x = torch.rand(1, 3, 224, 224).requires_grad_()
            (gradient,) = torch.autograd.grad(network.see(x, [site]).acts[site][0, cell, cell].sum(), x)
            seen = gradient[0].abs().sum((0, 1))
            assert abs(float((seen * torch.arange(224)).sum() / seen.sum()) - MIDDLE) <= stride / 2 + 1, site


def test_a_cropped_stimulus_gives_what_the_whole_one_gives(stimuli, tmp_path):
    torch.manual_seed(0)
    network = Network(InceptionV1(3).eval(), list("abc"), mean=(117 / 255,) * 3, std=(1 / 255,) * 3)
    few = stimuli.subset([0, 900, 2400], "few")
    curves.see_middle(tmp_path, network=network, pictures=few, sites=["conv2d2", "mixed3b"])
    x = torch.stack([network.as_input(few.picture(image)) for image in few.table["image"]])
    for site, acts in network.see(x, ["conv2d2", "mixed3b"]).acts.items():
        cell = curves._cell(network, site)
        wanted = acts[:, cell, cell].detach().numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{site}.npy"), wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_maps_of_stimuli_are_not_kept(tmp_path):
    """Only their middle cells: a tensor of one cell that is a view would hold its whole map."""
    acts = torch.zeros(2, 8, 8, 3)
    network = Network(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 8, 8)), list("abc"), 64)
    cell = curves._middle(network, acts, 4, 0)
    assert cell.shape == (2, 3) and cell.untyped_storage().nbytes() == 2 * 3 * 4
