"""Data sets: what is read, what is refused, and that loading does not depend on the number of workers."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model
from torchvision.datasets import FGVCAircraft
from torchvision.transforms import v2

from aircraft_sae.config import ClassifierConfig, DatasetConfig
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.pictures import AircraftData, aircraft, download, loader, loading, open_source, pixel_config
from aircraft_sae.pictures.loading import test_transform, train_transform

CLASSES = {
    "variant": ["F-16A/B", "Ан-2", "737-300"],
    "family": ["F-16", "Ан-2", "Boeing 737"],
    "manufacturer": ["Lockheed Martin", "Антонов", "Boeing"],
}
FILES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
PER_SPLIT = {"train": 9, "val": 3, "test": 6}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder that is as it should be: 18 noise pictures, 24 x 16 pixels, with boxes."""
    folder = tmp_path_factory.mktemp("clean") / "fgvc-aircraft-2013b" / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {split: [f"{'тvx'[k % 3]}{split}{k}" for k in range(n)] for split, n in PER_SPLIT.items()}
    for image in [image for images in names.values() for image in images]:
        Image.fromarray(rng.integers(256, size=(16, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{image}.jpg")
    for level, classes in CLASSES.items():
        write(folder / FILES[level], classes)
        for split, images in (names | {"trainval": names["train"] + names["val"]}).items():
            labels = [f"{image} {classes[int(image[-1]) % 3]}" for image in images]
            write(folder / f"images_{level}_{split}.txt", labels)
    write(folder / "images_box.txt", [f"{image} 1 2 24 16" for image in names["train"]])
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    shutil.copytree(clean.parents[1], tmp_path / "root")
    return tmp_path / "root" / "fgvc-aircraft-2013b" / "data"


def write(path: Path, lines: list[str], end: str = "\n"):
    path.write_bytes((end.join(lines) + end).encode())


def contents(root: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in root.rglob("*")}


def edit(name: str, old: str, new: str):
    def change(folder: Path):
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), "utf-8")

    return change


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name: str, content: bytes | Image.Image, form: str = "PNG"):
    def change(folder: Path):
        path = folder / "images" / f"{name}.jpg"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path, form)

    return change


def truncate(*names: str):
    return lambda folder: [put(n, (folder / "images" / f"{n}.jpg").read_bytes()[:-60])(folder) for n in names]


VAL = "images_variant_val.txt"
TRAIN = ["тtrain0", "vtrain1", "xtrain2", "тtrain3", "vtrain4", "xtrain5", "тtrain6"]
ABSENT = [f"images/{image}.jpg" for image in TRAIN]
REFUSED = {
    "no folder": (lambda f: shutil.rmtree(f.parents[1]), FileNotFoundError, ["does not exist", "fgvc-aircraft-2013b"]),
    "no layout": (lambda f: shutil.rmtree(f / "images"), FileNotFoundError, ["holds no", "data/images"]),
    "no classes": (remove("variants.txt"), FileNotFoundError, ["variants.txt", "copy"]),
    "no labels": (remove("images_family_test.txt"), FileNotFoundError, ["images_family_test.txt"]),
    "no level": (lambda f: [p.unlink() for p in f.glob("*.txt")], FileNotFoundError, ["images_variant_val.txt"]),
    "images absent": (remove(*ABSENT), FileNotFoundError, ["7 of 18", *TRAIN[:5], "….", "skip"]),
    "truncated": (truncate(*TRAIN), ValueError, ["7 of 18", *TRAIN[:5], "truncated", "…", "skip"]),
    "no picture": (put("vval1", b"<html>"), ValueError, ["1 of 18", "vval1.jpg", "identify"]),
    "fractions": (put("vval1", Image.new("F", (9, 9)), "TIFF"), ValueError, ["vval1.jpg", "fractions"]),
    "beyond 16 bits": (put("vval1", Image.new("I", (9, 9), 70000), "TIFF"), ValueError, ["vval1.jpg", "70000"]),
    "below banner": (put("vval1", Image.new("RGB", (9, 3))), ValueError, ["vval1.jpg", "3 pixels high"]),
    "unknown label": (edit(VAL, "F-16A/B", "F-16C"), ValueError, ["F-16C", "variants.txt"]),
    "empty split": (lambda f: [write(p, []) for p in f.glob("*_val.txt")], ValueError, ["val split", "empty"]),
    "in two splits": (edit(VAL, "тval0", "тtrain0"), ValueError, ["listed twice", "тtrain0"]),
    "levels disagree": (edit("images_family_val.txt", "тval0", "val9"), ValueError, ["2 images", "val9", "variant"]),
    "leaves folder": (lambda f: [edit(p.name, "тval0", "../x")(f) for p in f.glob("*_val.txt")], ValueError, ["../x"]),
    "line without label": (edit(VAL, "тval0 F-16A/B", "тval0"), ValueError, [VAL, "тval0", "image label"]),
    "class twice": (edit("variants.txt", "Ан-2", "737-300"), ValueError, ["737-300", "variants.txt"]),
    "class unused": (edit("families.txt", "Ан-2", "Ан-2\nАн-3"), ValueError, ["Ан-3", "without an image"]),
    "bad box": (edit("images_box.txt", "1 2 24 16", "9 2 x 16"), ValueError, ["images_box.txt", "тtrain0 9 2 x 16"]),
    "box inside out": (edit("images_box.txt", "1 2 24 16", "25 2 24 16"), ValueError, ["images_box.txt", "25 2"]),
    "endless box": (edit("images_box.txt", "1 2 24 16", "-inf 2 inf 16"), ValueError, ["images_box.txt", "-inf 2"]),
    "box twice": (edit("images_box.txt", "vtrain1", "тtrain0"), ValueError, ["images_box.txt", "тtrain0"]),
    "not UTF-8": (lambda f: (f / "variants.txt").write_bytes(b"\xc0\xed-2\n"), ValueError, ["variants.txt", "UTF-8"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_what_where_and_nothing_changes(folder, case):
    damage, error, words = REFUSED[case]
    damage(folder)
    root = folder.parents[1]
    before = contents(root)
    with pytest.raises(error) as raised:
        AircraftData.open(root, banner=4).check_images(progress=False)
    for word in [*words, str(root)]:
        assert word in str(raised.value)
    assert "xtrain5" not in str(raised.value)  # five are named, not six
    assert contents(root) == before


def test_bad_images_can_be_skipped_and_are_recorded(folder):
    remove("images/тtest0.jpg")(folder)
    truncate("vtest1")(folder)
    data = AircraftData.open(folder, on_bad_image="skip")
    assert data.skipped["image"].tolist() == ["тtest0", "vtest1"]
    assert "missing" in data.skipped["reason"][0] and "truncated" in data.skipped["reason"][1]
    assert data.rows("test")["image"].tolist() == ["xtest2", "тtest3", "vtest4", "xtest5"]
    data.check_images(progress=False)
    truncate("тval0", "vval1", "xval2")(folder)
    with pytest.raises(ValueError, match=r"val split .* is empty"):
        AircraftData.open(folder, on_bad_image="skip")
    with pytest.raises(ValueError, match="raise or skip"):
        AircraftData.open(folder, on_bad_image="ignore")


@pytest.mark.parametrize("level", CLASSES)
@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_reads_what_torchvision_reads(clean, split, level):
    theirs, data = FGVCAircraft(clean.parents[1], split, level), AircraftData.open(clean.parents[1])
    ours = data.torch(split, level, v2.PILToTensor())
    assert data.classes(level) == theirs.classes and len(ours) == len(theirs) > 0
    for k, (picture, label) in enumerate(theirs):
        pixels, our_label, row = ours[k]
        assert our_label == label and row == k and torch.equal(pixels, v2.functional.pil_to_tensor(picture))


def test_table_levels_boxes_and_parents(folder):
    data = AircraftData.open(folder.parent)
    box = data.table.loc[0, ["xmin", "ymin", "xmax", "ymax"]].tolist()
    assert box == [0, 1, 24, 16]  # the file counts from 1 and includes both ends
    assert data.rows("test")["xmin"].isna().all()
    assert data.parents("variant", "family") == dict(zip(CLASSES["variant"], CLASSES["family"], strict=True))
    assert len(data.rows("trainval")) == 12 and not data.masks
    with pytest.raises(FileNotFoundError, match="only rendered"):
        data.mask("тtrain0")
    for call in (lambda: data.rows("all"), lambda: data.classes("airline")):
        with pytest.raises(ValueError, match=r"all|airline"):
            call()
    edit("images_family_val.txt", "тval0 F-16", "тval0 Ан-2")(folder)
    with pytest.raises(ValueError, match=r"1 variant classes .*F-16A/B"):
        AircraftData.open(folder).parents("variant", "family")
    remove(*(p.name for p in folder.glob("*famil*")))(folder)
    assert AircraftData.open(folder).levels == ("variant", "manufacturer")


def test_windows_line_ends_and_blank_lines_change_nothing(clean, folder):
    for path in folder.glob("*.txt"):
        lines = path.read_text("utf-8").split("\n")
        path.write_text("\ufeff" + "\r\n".join([*lines, " ", ""]), "utf-8", newline="")
    there, here = AircraftData.open(clean), AircraftData.open(folder)
    assert here.table.equals(there.table) and here.fingerprint == there.fingerprint
    assert [here.classes(level) for level in here.levels] == list(CLASSES.values())


def test_fingerprint_is_of_the_content(clean, folder):
    fingerprints = [AircraftData.open(clean).fingerprint, AircraftData.open(clean, banner=2).fingerprint]
    assert AircraftData.open(folder).fingerprint == fingerprints[0]  # another place, other times
    edit("images_box.txt", "1 2 24 16", "1 3 24 16")(folder)
    fingerprints.append(AircraftData.open(folder).fingerprint)
    put("тval0", Image.new("RGB", (24, 16)), "JPEG")(folder)
    fingerprints.append(AircraftData.open(folder).fingerprint)
    truncate("тtest0")(folder)
    fingerprints.append(AircraftData.open(folder, on_bad_image="skip").fingerprint)
    assert len(set(fingerprints)) == 5


def with_transparency(picture: Image.Image, value) -> Image.Image:
    picture.info["transparency"] = value
    return picture


def palette(transparent: bool) -> Image.Image:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    return with_transparency(picture, 1) if transparent else picture


WHITE, DARK = (255, 255, 255), (1, 2, 3)
MODES = {
    "grey": (Image.new("L", (8, 8), 128), "PNG", (128, 128, 128)),
    "one bit": (Image.new("1", (8, 8), 1), "PNG", WHITE),
    "palette": (palette(False), "PNG", (255, 0, 0)),
    "transparent palette": (palette(True), "PNG", WHITE),
    "transparent colour": (with_transparency(Image.new("RGB", (8, 8), (9, 9, 9)), (9, 9, 9)), "PNG", WHITE),
    "RGBA": (Image.new("RGBA", (8, 8), (255, 0, 0, 51)), "PNG", (255, 204, 204)),
    "grey and alpha": (Image.new("LA", (8, 8), (0, 51)), "PNG", (204, 204, 204)),
    "CMYK": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),
    "16 bits": (Image.new("I;16", (8, 8), 128 * 257), "PNG", (128, 128, 128)),
    "one pixel": (Image.new("RGB", (1, 1), DARK), "PNG", DARK),
    "very wide": (Image.new("RGB", (5000, 2), DARK), "PNG", DARK),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_odd_mode_or_size_become_rgb(folder, mode):
    picture, form, want = MODES[mode]
    put("тtrain0", picture, form)(folder)
    (data := AircraftData.open(folder)).check_images(progress=False)
    got = data.picture("тtrain0")
    assert got.mode == "RGB" and got.size == picture.size
    assert np.abs(np.asarray(got).astype(int) - want).max() <= 1
    for transform in (test_transform(32, MEAN, STD), train_transform(32, MEAN, STD, ClassifierConfig(colour_jitter=0))):
        pixels = data.torch("train", "variant", transform)[0][0]
        assert pixels.shape == (3, 32, 32) and np.abs(pixels.numpy().T.astype(int) - want).max() <= 1


def test_coverage_is_the_share_of_a_cells_pixels(folder):
    mask = np.zeros((32, 24), np.uint8)  # 2 x 2 cells of 16 x 12 pixels
    mask[:8, :12], mask[16:, 12:18] = 3, 5
    (folder / "masks").mkdir()
    Image.fromarray(mask).save(folder / "masks" / "тtrain0.png")
    data = AircraftData.open(folder)
    coverage = data.coverage("тtrain0", 2, 2)
    assert coverage.shape == (len(PARTS), 2, 2) and np.allclose(coverage.sum(0), 1)
    np.testing.assert_allclose(coverage[3], [[0.5, 0], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(coverage[5], [[0, 0], [0, 0.5]], rtol=1e-5)
    assert data.foreground(["тtrain0"], 2, 2).tolist() == [[[True, False], [False, True]]]
    assert not data.foreground(["тtrain0"], 2, 2, least=0.6).any()
    thirds = data.coverage("тtrain0", 3, 1)  # rows of 10 2/3 pixels, half of their width
    np.testing.assert_allclose(thirds[3, :, 0], [8 / (32 / 3) / 2, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(thirds.sum(0), 1, rtol=1e-5)


def test_every_nth_image_of_the_same_data(folder):
    data = AircraftData.open(folder)
    assert data.every(3).table["image"].tolist() == data.table["image"].tolist()[::3]
    assert len(data.every(1).table) == len(data.table) and data.every(3).classes("variant") == data.classes("variant")


def test_banner_is_cut_off_pictures_and_masks_and_exif_never_turns_them(folder):
    pixels = np.full((16, 24), 200, np.uint8)
    pixels[12:] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by a quarter"
    Image.fromarray(pixels).save(folder / "images/тtrain0.jpg", exif=exif, quality=100)
    (folder / "masks").mkdir()
    Image.fromarray(pixels).save(folder / "masks" / "тtrain0.png")
    data = AircraftData.open(folder, banner=4)
    assert data.picture("тtrain0").size == (24, 12) and np.asarray(data.picture("тtrain0")).min() > 190
    assert data.masks and data.mask("тtrain0").shape == (12, 24) and (data.mask("тtrain0") == 200).all()


def fake_download(work):
    class Fake:
        _URL = FGVCAircraft._URL

        def __init__(self, root, download):
            (Path(root) / "archive.tar.gz").write_bytes(b"half")
            work(Path(root))

    return Fake


def test_failed_download_names_the_ways_out_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(root):
        raise OSError("no route to host")

    monkeypatch.setattr(aircraft, "FGVCAircraft", fake_download(fail))
    monkeypatch.setattr(aircraft, "DOWNLOAD_BYTES", 1)
    for root in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(OSError, match=r"no route to host.* by hand.*data root.*hangar"):
            open_source(DatasetConfig(source="fgvc", root=str(root)), None)
        assert list(tmp_path.rglob("*")) == []
    monkeypatch.setattr(aircraft, "DOWNLOAD_BYTES", 2**60)
    with pytest.raises(OSError, match="GiB of disk are free"):
        download(tmp_path)


def test_sources_are_found_or_downloaded(clean, tmp_path, monkeypatch):
    copy = fake_download(lambda root: shutil.copytree(clean.parent, root / clean.parent.name))
    monkeypatch.setattr(aircraft, "FGVCAircraft", copy)
    monkeypatch.setattr(aircraft, "DOWNLOAD_BYTES", 1)
    data = open_source(DatasetConfig(source="fgvc", banner=3), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fgvc-aircraft-2013b"]
    assert data.banner == 3 and data.table.equals(open_source(DatasetConfig(), clean).table)
    monkeypatch.setattr(aircraft, "FGVCAircraft", None)  # found: nothing is fetched
    assert open_source(DatasetConfig(source="fgvc", root=str(clean)), None).folder == clean
    with pytest.raises(ValueError, match="data-root"):
        open_source(DatasetConfig(source="folder"), clean)


def epochs(dataset, workers: int, wanted: list[int], seed: int | None = 3) -> list[tuple]:  # of pixels, labels, rows
    batches = loader(dataset, 4, order_seed=seed, workers=workers)
    passes = []
    for epoch in wanted:
        batches.set_epoch(epoch)
        passes.append(tuple(torch.cat(parts) for parts in zip(*batches, strict=True)))
    return passes


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_augmentation_depend_on_seed_epoch_and_row_only(clean, workers):
    data = AircraftData.open(clean)
    dataset = data.torch("train", "variant", train_transform(32, MEAN, STD, ClassifierConfig()))
    before = torch.get_rng_state()
    first, second, third = epochs(dataset, workers, [0, 1, 2])
    assert torch.equal(torch.get_rng_state(), before)  # else a resumed training would go on differently
    for ours, reference in zip((first, second, third), epochs(dataset, 0, [0, 1, 2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
    (resumed,) = epochs(dataset, workers, [2])
    assert torch.equal(resumed[0], third[0]) and torch.equal(resumed[2], third[2])
    assert first[2].tolist() != second[2].tolist() and sorted(first[2].tolist()) == list(range(9))
    assert not torch.equal(first[0][first[2].argsort()], second[0][second[2].argsort()])
    ((pixels, _, rows),) = epochs(dataset, 0, [0], seed=4)
    assert not torch.equal(first[0][first[2].argsort()], pixels[rows.argsort()])
    twins = loading.Pictures(lambda image: data.picture("vval1"), ["", ""], dataset.labels, dataset.transform)
    assert not torch.equal(twins[3, 0, 0][0], twins[3, 0, 1][0])
    (plain,) = epochs(dataset, workers, [0], seed=None)
    assert plain[2].tolist() == list(range(9)) and plain[1].tolist() == dataset.labels.tolist()


def test_batches_are_normalised_as_torchvision_does(clean):
    data = AircraftData.open(clean)
    dataset = data.torch("test", "variant", test_transform(32, MEAN, STD))
    pictures, _, _ = next(iter(loader(dataset, 6, workers=0)))
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(pictures, torch.stack([reference(dataset[k][0]) for k in range(6)]))
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert pixel_config(create_model("test_convnext")) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pickle.loads(pickle.dumps(dataset))[0][1:] == dataset[0][1:]  # where workers are spawned
    for batch_size, workers in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="at least"):
            loader(dataset, batch_size, workers=workers)


def test_nose_and_tail_of_a_wide_picture_stay_and_crops_keep_its_proportions():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :6, 0], pixels[:, -6:, 2] = 255, 255
    whole = test_transform(32, MEAN, STD)(Image.fromarray(pixels))
    assert (whole[0, :, 0] > 200).all() and (whole[2, :, -1] > 200).all()

    def augmented(**on):
        steps = {"crop_scale": (1, 1), "flip": False, "colour_jitter": 0} | on
        return train_transform(32, MEAN, STD, ClassifierConfig(**steps))(Image.fromarray(pixels))

    assert torch.equal(augmented(), whole) and not torch.equal(augmented(colour_jitter=0.5), whole)
    assert any(torch.equal(augmented(flip=True), whole.flip(-1)) for _ in range(30))
    crop = loading.RandomSquashedCrop(32, scale=(0.3, 0.5))
    for _ in range(50):
        box = crop.make_params([Image.new("RGB", (900, 300))])
        assert 0.73 < box["width"] / box["height"] / 3 < 1.37  # relative to the picture's own 3 : 1
        assert 0.28 < box["width"] * box["height"] / 270000 < 0.52
        assert box["left"] + box["width"] <= 900 and box["top"] + box["height"] <= 300
        assert loading.RandomSquashedCrop(32, scale=(0.1, 0.2))(Image.new("L", (1, 1), 9)).getextrema() == (9, 9)
