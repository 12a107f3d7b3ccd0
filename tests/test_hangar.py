"""The hangar: determinism, edits, masks, layout, speed of nothing, and no shortcut to the class."""

import hashlib
import itertools
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import FGVCAircraft

from aircraft_sae.config import HangarConfig
from aircraft_sae.hangar import PARTS, VARIANTS
from aircraft_sae.hangar.dataset import _splits, render_dataset
from aircraft_sae.hangar.meshes import build
from aircraft_sae.hangar.render import _openness, render
from aircraft_sae.hangar.scene import Camera, Edit, Scene, sample

HANGAR = list(VARIANTS.values())
SMALL = HangarConfig(n_variants=3, scenes_per_variant=6, size=48, supersampling=1)
# variants and the parts that the test of edits takes off them; together they have every part
EDITED = {"210-300": ["fuselage", "wing", "stabilizer", "fin", "engine", "nose_gear", "window", "cockpit"],
          "172": ["main_gear", "strut", "propeller"], "250-400": ["flap_fairing"]}  # fmt: skip


def scene_of(variant: str, **camera: float) -> Scene:
    """A clear view on the ground from the front left, without blur."""
    scene = sample(variant, 0, 4)
    scene = replace(
        scene,
        background=replace(scene.background, kind="apron"),
        finish=replace(scene.finish, blur=0.0),
        gear_down=True,
    )
    view = dict(azimuth=0.95, elevation=0.08, roll=0.0, distance=4.0, focal=3.2, shift_x=0.0, shift_y=0.05)
    return replace(scene, camera=Camera(**(view | camera)))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hangar")
    render_dataset(folder, SMALL, workers=1)
    return folder


def test_the_pretraining_taxonomy_has_nothing_in_common_with_the_hangar():
    assert (len(HANGAR), len({a.family for a in HANGAR}), len({a.manufacturer for a in HANGAR})) == (30, 15, 6)
    try:
        pretraining = runpy.run_path(Path(__file__).parents[1] / "data/weights/pretrain.py")["FRAMES"]
        assert list(VARIANTS.values()) == pretraining and len(pretraining) == 192
    finally:
        VARIANTS.clear()
        VARIANTS.update({frame.variant: frame for frame in HANGAR})
    names = dict(variant="", family="", manufacturer="")
    everything = HANGAR + pretraining
    assert len({a.variant for a in everything}) == len({replace(a, **names) for a in everything}) == len(everything)


@pytest.mark.parametrize("frame", HANGAR, ids=lambda a: a.variant)
def test_every_airframe_is_well_formed(frame):
    mesh = build(frame)
    assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.normals).all()
    assert mesh.faces.max() < len(mesh.vertices)
    extent = np.ptp(mesh.vertices, axis=0)
    assert 0.95 < extent[:2].max() < 1.35 and extent[2] < 0.6, extent


def test_every_part_is_seen_somewhere():
    seen = np.zeros(len(PARTS), int)
    for number, frame in enumerate(HANGAR):
        seen += np.bincount(render(sample(frame.variant, 0, number), 112, 1).mask.ravel(), minlength=len(PARTS)) > 0
    assert (seen > 0).all(), dict(zip(PARTS, seen, strict=True))


@pytest.mark.parametrize(("variant", "part"), [(v, p) for v, parts in EDITED.items() for p in parts])
def test_removing_a_part_changes_its_pixels_and_no_others(variant, part):
    # one ray a pixel, so that the mask says exactly what each pixel shows
    scene = replace(scene_of(variant), shadows=False)
    before, after = render(scene, 224, 1), render(scene.edit("remove", part), 224, 1)
    own = before.mask == PARTS.index(part)
    changed = (before.image != after.image).any(2)
    assert own.sum() >= 20
    assert not changed[~own].any()
    assert changed[own].mean() > 0.6
    assert not (after.mask == PARTS.index(part)).any()
    assert (before.mask[~own] == after.mask[~own]).all()


def test_removing_a_part_with_shadows_also_changes_where_its_shadow_fell():
    scene = scene_of("210-300", elevation=0.3)
    before, after = render(scene, 224, 1), render(scene.edit("remove", "wing"), 224, 1)
    changed = (before.image != after.image).any(2) & (before.mask != PARTS.index("wing"))
    ground = before.mask == PARTS.index("ground")
    assert changed[ground].sum() > 50
    # what was in shadow is lighter without the wing
    gain = after.image.astype(int).sum(2) - before.image.astype(int).sum(2)
    assert (gain[changed & ground] > 0).mean() > 0.95


def test_a_pixel_belongs_to_the_part_that_most_of_its_rays_meet():
    scene = scene_of("210-300")
    # the same rays, one a pixel
    rays = render(scene, 224, 1).mask.reshape(112, 2, 112, 2).swapaxes(1, 2).reshape(112, 112, 4)
    mask = render(scene, 112, 2).mask
    counts = np.stack([(rays == part).sum(-1) for part in range(len(PARTS))], -1)
    aircraft = counts[..., 2:].sum(-1) >= 2
    assert (aircraft == (mask >= 2)).all() and aircraft.sum() > 500
    chosen = np.take_along_axis(counts, mask[..., None].astype(int), 2)[..., 0]
    assert (chosen == counts[..., 2:].max(-1))[aircraft].all()


@pytest.mark.parametrize("number", [2, 5, 9, 39, 44])  # two in flight; on the ground, with much sky above the trees
def test_one_ray_a_pixel_is_enough_for_the_sky(number, monkeypatch):
    scene = sample("210-300", 0, number)
    quick = render(scene, 112, 2)
    monkeypatch.setattr("aircraft_sae.hangar.render.skyline", lambda scene: np.inf)  # no row is above it
    full = render(scene, 112, 2)
    apart = np.abs(quick.image.astype(int) - full.image)
    assert (quick.mask == full.mask).all() and apart.max() <= 4 and apart.mean() < 0.2
    assert apart.any()  # else the slow way was taken both times


def test_many_rays_a_pixel_are_not_lost():
    for number in (2, 3):  # in flight, on the ground
        few, many = (render(sample("210-300", 0, number), 24, n) for n in (4, 16))
        assert np.abs(few.image.astype(int) - many.image).mean() < 4
        assert (few.mask != many.mask).mean() < 0.05 and np.ptp(many.mask) > 0


@pytest.mark.parametrize("variant", ["210-100", "Bise 1", "172"])
def test_libigl_meets_what_embreex_meets(variant, monkeypatch):
    """Where embreex has no wheel: the same masks, and but for a ray in a thousand the same pixels."""
    pytest.importorskip("igl.embree")
    pytest.importorskip("embreex")
    scenes = [sample(variant, 3, number) for number in range(3)]
    expected = [render(scene, 64) for scene in scenes]
    _openness.cache_clear()
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    for scene, picture in zip(scenes, expected, strict=True):
        got = render(scene, 64)
        np.testing.assert_array_equal(got.mask, picture.mask)
        assert (got.image != picture.image).mean() < 0.001
    _openness.cache_clear()


def test_without_both_the_remedy_is_named(monkeypatch):
    for name in ("embreex.rtcore_scene", "igl.embree"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install libigl"):
        render(sample("210-100", 0, 0), 32)


def test_edits_do_what_they_say():
    scene = replace(scene_of("210-300"), shadows=False)
    plain = render(scene, 224, 1)
    fin, engine = (plain.mask == PARTS.index(p) for p in ("fin", "engine"))

    red = render(scene.edit("recolour", "fin", (0.9, 0.05, 0.05)), 224, 1)
    assert ((red.image != plain.image).any(2) <= fin).all() and (red.mask == plain.mask).all()
    assert (red.image[fin, 0].astype(int) > red.image[fin, 1].astype(int) + 20).mean() > 0.9

    def middle(mask):
        return np.array(ndimage.center_of_mass(mask == PARTS.index("engine")))

    moved = render(scene.edit("move", "engine", (0.08, 0, 0)), 224, 1)
    shift = middle(moved.mask) - middle(plain.mask)
    # the camera stands ahead on the left: forward is to the left in the picture
    assert shift[1] < -3
    allowed = engine | (moved.mask == PARTS.index("engine"))
    assert ((moved.image != plain.image).any(2) <= allowed).all()

    other = sample("210-300", 0, 9).livery
    repainted = render(replace(scene, livery=other), 224, 1)
    assert (repainted.mask == plain.mask).all()
    assert (repainted.image == plain.image).all(2)[plain.mask < 2].all()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.edit("remove", "rotor"), "rotor"),
        (lambda s: s.edit("remove", "sky"), "sky"),
        (lambda s: s.edit("bend", "fin"), "kind must be"),
        (lambda s: Scene.from_json(s.to_json().replace("[]", '[{"kind": "bend", "part": "fin"}]')), "kind must be"),
    ],
)
def test_impossible_edits_are_refused(edit, words):
    with pytest.raises(ValueError, match=words):
        edit(scene_of("172"))


def test_a_scene_survives_json_and_renders_to_the_same_bytes():
    scene = sample("F/A-9D", 3, 77).edit("remove", "engine")
    scene = scene.edit("move", "fin", (0.1, 0, 0)).edit("recolour", "wing", (1, 0.5, 0))
    again = Scene.from_json(scene.to_json())
    assert again == scene
    first, second = render(scene, 64), render(again, 64)
    assert first.image.tobytes() == second.image.tobytes() and first.mask.tobytes() == second.mask.tobytes()


def test_only_the_name_depends_on_the_variant():
    one, other = (sample(v, 0, 5) for v in ("172", "Delta 5"))
    assert replace(one, variant="Delta 5") == other
    assert sample("172", 0, 6) != one != sample("172", 1, 5)


def test_same_bytes_with_one_worker_or_two_and_after_an_interruption(rendered, tmp_path):
    # two workers are two fresh processes: this also compares processes with each other
    render_dataset(tmp_path, SMALL, workers=2)
    assert digest(tmp_path) == digest(rendered)
    images = tmp_path / "fgvc-aircraft-2013b/data/images"
    for name in ("0000003.jpg", "0000011.jpg"):
        (images / name).unlink()
    render_dataset(tmp_path, SMALL, workers=1)
    assert digest(tmp_path) == digest(rendered)


def test_layout_is_what_torchvision_reads(rendered):
    data = rendered / "fgvc-aircraft-2013b/data"
    table = pd.read_parquet(data / "scenes.parquet")
    for level, split in itertools.product(("variant", "family", "manufacturer"), ("train", "val", "trainval", "test")):
        dataset = FGVCAircraft(rendered, split=split, annotation_level=level)
        members = table[table.split.isin(["train", "val"] if split == "trainval" else [split])]
        assert [dataset.classes[label] for label in dataset._labels] == members[level].tolist()
    assert set(table.split) == {"train", "val", "test"}
    assert (table.groupby("variant").split.value_counts().groupby("split").nunique() == 1).all()
    for row in table.itertuples():
        mask = np.asarray(Image.open(data / "masks" / f"{row.image}.png"))
        assert mask.dtype == np.uint8 and mask.shape == (SMALL.size, SMALL.size)
        aircraft = mask >= 2
        assert aircraft[row.ymin - 1 : row.ymax, row.xmin - 1 : row.xmax].sum() == aircraft.sum() > 0
        picture = render(Scene.from_json(row.scene), SMALL.size, SMALL.supersampling)
        assert (picture.mask == mask).all()


@pytest.mark.parametrize("n", [3, 4, 8, 100])
def test_every_split_has_a_scene_of_every_variant(n):
    counts = Counter(_splits(replace(SMALL, scenes_per_variant=n)))
    assert set(counts) == {"train", "val", "test"} and counts.total() == n
    assert n != 100 or counts == {"test": 33, "train": 57, "val": 10}


@pytest.mark.parametrize("clue", ["background", "histogram"])
def test_no_shortcut_to_the_class(clue):
    """A linear classifier on held-out scenes sees at most chance plus three standard errors."""
    n, features, labels = 40, [], []
    bare = tuple(Edit("remove", part) for part in PARTS[2:])
    for label, frame in enumerate(HANGAR):
        for i in range(n):
            scene = sample(frame.variant, 3, label * n + i)
            if clue == "background":
                image = render(replace(scene, edits=bare), 24, 1).image
                features.append(image.reshape(12, 2, 12, 2, 3).mean((1, 3)).ravel())
            else:
                picture = render(scene, 48, 1)
                pixels = picture.image[picture.mask >= 2] // 64
                counts = np.bincount(pixels @ [16, 4, 1], minlength=64)
                features.append(counts / counts.sum())
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    train = np.arange(len(labels)) % n < n // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    accuracy = model.fit(features[train], labels[train]).score(features[~train], labels[~train])
    chance = 1 / len(HANGAR)
    assert accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / (~train).sum())
