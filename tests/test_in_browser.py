"""A real browser (Debian's chromium) on notebook 06 in JupyterLab, and in voila."""

import base64
import os
import re
import time
from contextlib import contextmanager
from urllib.parse import parse_qsl

import numpy as np
import pytest
from lab import CHROMIUM, NOTEBOOK, START, WAIT, jupyterlab, open_notebook, server
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from test_browser import same

from aircraft_sae.view.browser import Labels
from aircraft_sae.view.browser.catalogue import as_jpeg
from aircraft_sae.view.plots import heat
from aircraft_sae.view.report import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r requirements.txt")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="as above").Axe
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
TABS = {"Features": "features", "Parts": "part", "Picture": "picture", "Classes": "class"}
ON_BENCH = ".stage canvas", ".outcome", ".bench p.margin"
# JavaScript: a canvas's pixels; the controls that Tab should reach; the one in focus; a count of what a person does
PIXELS = """(canvas) => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
TABBED = """(root) => [...root.querySelectorAll('button, input, select, textarea, summary, canvas[tabindex]')]
  .filter((node) => node.checkVisibility({ checkVisibilityCSS: true }) && !node.disabled)
  .filter((node) => !node.matches('[role=tab][tabindex="-1"], .list button[tabindex="-1"]'))
  .map((node, i) => (node.dataset.nth = i))"""
FOCUSED = """(kind) => { const node = document.activeElement, style = getComputedStyle(node);
  if (!node.closest(`.sae-${kind}`)) return null;
  return [node.dataset.nth === undefined ? null : Number(node.dataset.nth),
    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, node.outerHTML.slice(0, 80)]; }"""
COUNT = """() => { window.acted = [];
  for (const kind of ['click', 'keydown']) {
    addEventListener(kind, (event) => event.isTrusted && acted.push(event.key || kind), true); }
  addEventListener('change', ({ target }) => { // a person opens the list, and chooses
    if (target.tagName === 'SELECT') acted.push('click', 'click'); }, true); }"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(chromium, browser_study, tmp_path_factory):
    known = {"AIRCRAFT_SAE_DATA_DIR": str(browser_study.data_dir)}
    with jupyterlab(tmp_path_factory.mktemp("lab"), **known) as address:
        yield open_notebook(chromium, address)


@pytest.fixture
def labels(page, catalogue):
    """The labels on disk, which go after the test."""
    labels = Labels(catalogue.folder, catalogue.key)
    yield labels
    labels.path.unlink(missing_ok=True)
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    until(lambda: state(page, "Object.keys(state.labels).length"), 0)


def app(page, kind="browser"):
    return page.locator(f".sae-{kind}")


def state(page, expression, kind="browser"):
    """The value of a JavaScript expression of the front end's `state`."""
    return app(page, kind).first.evaluate(f"({{ state }}) => {expression}")


def drawn(page, what, kind="browser"):
    """Wait until the front end has drawn `what`."""
    page.wait_for_selector(f'.sae-{kind}[data-drawn="{what}"]')


def until(found, wanted):
    """Wait until `found()` is `wanted`."""
    for _ in range(WAIT // 100):
        if found() == wanted:
            return
        time.sleep(0.1)
    assert found() == wanted


@contextmanager
def beside(page):
    """A second browser beside the first one, which starts from a link to the first one's state."""
    button(page, "Side by side").click()
    second = page.locator(".sae-two .sae-browser").nth(1)
    second.and_(page.locator("[data-drawn=ready]")).wait_for()
    yield second
    button(page, "Side by side").click()
    assert app(page).count() == 1


def listed(page):
    """Ids on the list's page."""
    return [int(text[1:]) for text in page.locator(".sae-browser .list li:visible b").all_inner_texts()]


def press(page, key, what):
    """Press a key in the browser and wait until `what` is drawn."""
    app(page).first.focus()
    page.keyboard.press(key)
    drawn(page, what)


def enter(page, tab):
    page.get_by_role("tab", name=tab).click()
    drawn(page, f"entrance {TABS[tab]}")


def search(page, words):
    page.get_by_role("searchbox", name="search").fill(words)
    drawn(page, "list")


def show(page, feature_id):
    """Go to a feature by its number."""
    page.get_by_label("feature number").fill(str(feature_id))
    page.get_by_label("feature number").press("Enter")
    page.wait_for_selector(f'.sae-browser[data-feature="{feature_id}"]')


def button(page, name, kind="browser"):
    return app(page, kind).first.get_by_role("button", name=name, exact=True)


def put_on_bench(page, catalogue, row):
    """Choose a class, which opens its first picture, and then the picture."""
    app(page).get_by_label("class of the picture").select_option(catalogue.label(row))
    app(page).get_by_label("picture", exact=True).select_option(str(row))
    page.wait_for_selector(f'.sae-browser[data-picture="{row}"][aria-busy=false]')


def check_change(page, made, kind="browser", tolerance=1e-3):
    """The front end has the logits of `Bench.change`, with random directions too."""
    assert (made["after"] - made["before"]).abs().max() > 2 * tolerance
    until(lambda: state(page, "state.after.after", kind), pytest.approx(made["after"].tolist(), abs=tolerance))
    same(state(page, "state.after.random", kind), made["random"], 1e-3)


def check_logits(page, catalogue, columns):
    """The bench prints these logits {column: (classes,)}; an empty column prints none."""
    for column, made in columns.items():
        cells = app(page).locator(f'.logits td[data-kind="{column}"]').evaluate_all(
            "cells => cells.map((cell) => [cell.dataset.class, Number(cell.querySelector('b').innerText)])"
        )  # fmt: skip
        assert (len(cells) >= 2) == (made is not None), column
        for name, value in cells:
            assert value == pytest.approx(float(made[catalogue.network.classes.index(name)]), abs=1.1e-3), column


def link_of(page):
    """The parts of what "Copy link" gives."""
    app(page).first.get_by_role("button", name="Copy link").click()
    drawn(page, "link")
    text = app(page).first.get_by_label("link", exact=True).input_value()
    return dict(parse_qsl(re.fullmatch(r'FeatureBrowser\(study, like="main", at="(.*)"\)', text)[1]))


def by_part(catalogue):
    alive = catalogue.table[catalogue.table["density_cell"] > 0]
    return alive.sort_values("part_ap", ascending=False, kind="stable")["feature_id"].tolist()


# ---------------------------------------------------------------- the notebook: find a feature
def test_keys_and_the_list_lead_from_feature_to_feature(page, catalogue):
    order, help_ = by_part(catalogue), app(page).locator("dialog")
    assert listed(page) == order[:50] and app(page).get_attribute("data-feature") == str(order[0])
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        press(page, key, f"feature {order[at]}")
    page.locator(".sae-browser .list li button").nth(5).click()
    drawn(page, f"feature {order[5]}")
    page.keyboard.press("?")
    assert help_.is_visible()
    page.keyboard.press("ArrowRight")  # does nothing behind the help
    page.keyboard.press("Tab")
    assert app(page).evaluate("() => document.activeElement.closest('.sae-app > :not(dialog)') === null")
    page.keyboard.press("Escape")
    assert not help_.is_visible() and app(page).evaluate("(node) => node === document.activeElement")
    assert app(page).get_attribute("data-feature") == str(order[5])
    show(page, order[0])
    app(page).locator(".list button[tabindex='0']").focus()
    for key, at in (("ArrowUp", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("End", 49), ("Home", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        assert page.evaluate("() => document.activeElement.dataset.id") == str(listed(page)[min(at, 49)])
    assert app(page).locator(".list button[tabindex='0']").count() == 1  # one stop for the Tab key
    page.keyboard.press("Enter")
    drawn(page, f"feature {order[1]}")
    page.evaluate(  # faster than anything is drawn
        """() => { const el = document.querySelector('.sae-browser');
        const press = () => el.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
        for (let i = 0; i < 25; i++) press(); }"""
    )
    drawn(page, f"feature {order[26]}")
    pictures = [tile["picture"] for tile in catalogue.feature(order[26])[0]["gallery"]]
    tiles = app(page).locator(".tile:visible").all()
    assert [int(tile.get_attribute("data-picture")) for tile in tiles] == pictures


def test_the_gallery_has_pythons_pixels(page, catalogue, often):
    def pixels():
        got = app(page).locator(".tile canvas").first.evaluate(PIXELS)
        return np.array(got, np.float32).reshape(160, 160, 4)[..., :3]

    show(page, often)
    view, maps = catalogue.feature(often)
    tile, top = view["gallery"][0], catalogue.table.at[often, "max"]
    picture = catalogue.picture(tile["picture"]).resize((160, 160), Image.BICUBIC)
    right, wrong = (heat(picture, each, top, tuple(tile["cell"])) for each in (maps[0], maps[0][::-1, ::-1]))
    assert np.abs(pixels() - right).mean() < 4 and np.abs(pixels() - wrong).mean() > 6  # JPEG and rounding
    press(page, "h", "gallery")
    assert np.abs(pixels() - np.float32(picture)).mean() < 4
    app(page).get_by_label("close-ups").check()
    side, middle = 160 * 72 / 224, (np.add(tile["cell"], 0.5) / catalogue.index.grid * 160)[::-1]
    start = np.clip(middle - side / 2, 0, 160 - side)
    crop = picture.resize((160, 160), Image.BICUBIC, (*start, *(start + side)))
    assert np.abs(pixels() - np.float32(crop)).mean() < 4 and np.abs(pixels() - np.float32(picture)).mean() > 6
    app(page).get_by_label("close-ups").uncheck()
    press(page, "h", "gallery")


def test_the_list_is_filtered_searched_and_sorted_and_tells_classes_apart(page, catalogue):
    table, shown = catalogue.table, (100 * catalogue.table["density_cell"]).map(lambda value: float(f"{value:.3g}"))
    page.get_by_role("button", name="+ filter").click()
    row = page.locator(".sae-browser .range")
    row.get_by_label("at least").fill("5")  # percent, as in the list
    row.get_by_label("at most").fill("30")
    drawn(page, "list")
    wanted = [j for j in by_part(catalogue) if 5 <= shown[j] <= 30]
    assert listed(page) == wanted[:50] and 0 < len(wanted) < len(table)
    page.get_by_label("sort by").select_option("density_cell")
    drawn(page, "list")
    values = [float(text) for text in page.locator(".sae-browser .list li:visible i").all_inner_texts()]
    assert values == shown[wanted].sort_values(ascending=False).tolist()[:50]
    row.get_by_label("remove this filter").click()
    page.get_by_label("sort by").select_option("max")
    alive = table[table["density_cell"] > 0].sort_values("max", ascending=False, kind="stable")
    assert listed(page) == alive["feature_id"].tolist()[:50]
    names = table[[*(f"{level}/class" for level in catalogue.levels), "part"]].astype(str)
    best = catalogue.parts.dropna(subset="ap").sort_values("ap", ascending=False, kind="stable")
    best = best.groupby("part").head(10).groupby("feature_id")["part"].agg(set)  # parts it is among the ten best for
    for words, meant in {"engine": ["engine"], "undercarriage": ["nose_gear", "main_gear"],
                         catalogue.network.classes[0]: []}.items():  # fmt: skip
        search(page, words)
        hit = names.apply(lambda column, words=words: column.str.lower().str.contains(words.lower())).any(axis=1)
        hit[[j for j, parts in best.items() if parts & set(meant)]] = True
        offered = page.locator(".sae-browser nav").get_by_role("button", name="all features by")
        assert offered.all_inner_texts() == [f"all features by {part.replace('_', ' ')}" for part in meant]
        assert hit.any() and listed(page) == alive[hit[alive.index]]["feature_id"].tolist()[:50]
    search(page, "")
    app(page).get_by_text("Filters", exact=True).click()
    part, own, placed = table["part"].dropna().mode()[0], f"{catalogue.level}/class", alive[alive["placed"] != "none"]
    choices = [("part", part, alive[alive["part"] == part])]
    choices += [("class", f"{catalogue.level}|{name}", placed[placed[own] == name]) for name in placed[own][:1]]
    for name, choice, kept in choices:
        app(page).get_by_label(f"filter by {name}").select_option(choice)
        assert listed(page) == kept["feature_id"].tolist()[:50]
        assert app(page).locator(".filters summary").inner_text() == f"Filters: {len(alive) - len(kept)} left out"
        app(page).get_by_label(f"filter by {name}").select_option("")
    app(page).locator(".filters summary").click()
    search(page, "no such thing")
    assert app(page).locator(".pager").get_by_text("no feature").is_visible()
    search(page, "")
    captions = {}
    for by in page.get_by_label("sort by").locator("option").evaluate_all("all => all.map((each) => each.value)"):
        page.get_by_label("sort by").select_option(by)
        drawn(page, "list")
        for j, name in zip(listed(page), page.locator(".sae-browser .list span").all_inner_texts(), strict=False):
            assert captions.setdefault(j, name) == name  # a feature's name does not depend on the order
    assert any(name.endswith("?") for name in captions.values())
    page.get_by_label("sort by").select_option("part_ap")
    enter(page, "Classes")
    one, two = catalogue.network.classes[:2]
    app(page).get_by_label("first class").select_option(one)
    app(page).get_by_label("second class").select_option(two)
    compare = button(page, "What tells them apart?")
    compare.click()
    drawn(page, "pair")
    wanted = [each["feature_id"] for each in catalogue.pair(one, two)]
    assert listed(page) == wanted
    app(page).get_by_label("second class").select_option(one)  # nothing to compare, and no old answer
    drawn(page, "no pair")
    assert compare.is_disabled() and app(page).locator(".pair").inner_text() == "" and listed(page) != wanted
    enter(page, "Features")


# ---------------------------------------------------------------- the notebook: label it
def test_labels_stay_with_their_feature_and_others_labels_are_heard(page, catalogue, labels):
    one, two, three = listed(page)[:3]
    label, notes = (app(page).get_by_label(name, exact=True) for name in ("label", "notes"))
    show(page, one)
    app(page).locator(".suggestion").click()
    drawn(page, f"label {one}")
    assert not app(page).locator(".suggestion").is_visible()
    page.keyboard.press("ArrowRight")  # keys work although what was clicked is gone
    drawn(page, f"feature {two}")
    page.keyboard.press("l")
    page.keyboard.type("Étoile, nose tip\n")
    drawn(page, f"label {two}")
    page.keyboard.press("ArrowRight")
    drawn(page, f"feature {three}")
    notes.focus()
    page.keyboard.type("two\nlines\n")
    show(page, one)  # at once: nothing is saved yet
    assert notes.input_value() == ""
    until(lambda: labels.all().get(three, {}).get("note"), "two\nlines\n")
    said = labels.all()
    assert said[one]["label"] == catalogue.table["part"][one].replace("_", " ")
    assert said[two]["label"] == "Étoile, nose tip" and said[three]["label"] == ""
    search(page, "tip etoile")  # every word, with or without accents
    assert listed(page) == [two]
    search(page, "")
    app(page).get_by_text("Filters", exact=True).click()
    app(page).get_by_label("filter by label").select_option("none")
    drawn(page, "list")
    unnamed = listed(page)
    show(page, unnamed[3])
    label.fill("gone")
    label.press("Enter")
    drawn(page, f"label {unnamed[3]}")
    assert unnamed[3] not in listed(page)
    press(page, "ArrowRight", f"feature {unnamed[4]}")  # the next one in the list
    app(page).get_by_label("filter by label").select_option("")
    app(page).locator(".filters summary").click()
    show(page, one)
    labels.set(two, label="of another browser")
    press(page, "ArrowRight", f"feature {two}")
    until(label.input_value, "of another browser")
    until(lambda: app(page).locator(".list [aria-current=true] span").inner_text(), "of another browser")
    label.fill("mine")  # what is typed here stays, whatever is heard
    labels.set(one, label="of a third")
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    until(lambda: labels.all()[two]["label"], "mine")
    assert label.input_value() == "mine"
    labels.path.write_text("not a table of labels")
    label.fill("wing")
    drawn(page, "error")
    assert "labels.csv" in app(page).get_by_role("alert").inner_text()
    app(page).get_by_text("not saved").wait_for()
    labels.path.unlink()
    app(page).get_by_label("Dismiss the message").click()
    show(page, one)  # it is tried again
    until(lambda: labels.all().get(two, {}).get("label"), "wing")


# ---------------------------------------------------------------- the notebook: the bench
def test_the_bench_follows_the_gallery_lists_a_cells_features_and_blurs(page, catalogue, bench, often):
    show(page, often)
    tile = app(page).locator(".tile:visible").last
    row = int(tile.get_attribute("data-picture"))
    tile.click()
    drawn(page, f"picture {row}")
    assert app(page).get_by_label("picture", exact=True).input_value() == str(row)
    assert app(page).get_by_label("class of the picture").input_value() == catalogue.label(row)
    heated = "() => document.querySelector('.sae-browser .stage canvas').toDataURL()"
    before = page.evaluate(heated)
    show(page, int(catalogue.table["density_cell"].argmin()))
    assert page.evaluate(heated) != before  # the heat is the shown feature's
    assert app(page).get_by_text("A dead feature").is_visible()
    most = (catalogue.trial.strength > 0).sum(1)
    row = int(catalogue.rows[most.argmax()])
    assert most.max() > 20  # more than there are sliders
    put_on_bench(page, catalogue, row)
    subject, sliders = bench.of_row(row), app(page).locator(".slider:visible")
    rare, ids = bench.page(subject, row)["active"][-1]["feature_id"], "(all) => all.map((each) => each.dataset.id)"
    show(page, rare)
    there = sliders.evaluate_all(ids)
    assert there[0] == str(rare)
    sliders.nth(1).locator("input").press("ArrowRight")
    drawn(page, "logits")
    assert sliders.evaluate_all(ids) == there  # rows stay under the hand
    button(page, "Reset").click()
    canvas = app(page).locator(".stage canvas")
    canvas.scroll_into_view_if_needed()
    box, last = canvas.bounding_box(), subject.acts.shape[1] - 1
    canvas.click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
    drawn(page, f"cell 0,{last}")
    values = subject.codes[0, last]
    wanted = values.argsort(descending=True)[: int((values > 0).sum())].tolist()
    assert listed(page) == wanted and wanted
    button(page, "whole picture").click()
    assert app(page).locator(".pager span").inner_text().endswith(f" of {int(most.max())}")
    enter(page, "Features")
    app(page).get_by_label("blur brush").check()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    drawn(page, "blur 1")
    cell, classes = (subject.acts.shape[0] - 1, 0), catalogue.network.classes
    blurred = bench.blurred(subject, [cell], 8.0).logits
    beside = bench.blurred(subject, bench.control_cells(subject, [cell]).tolist()).logits
    check_logits(page, catalogue, {"cells blurred": blurred, "other cells blurred": beside})
    was, now, other = (classes[int(each.argmax())] for each in (subject.logits, blurred, beside))
    outcome = f"Cells blurred: {now}, {'still' if now == was else f'no longer {was}'}; other cells: {other}."
    assert app(page).locator(".outcome").inner_text() == outcome
    for wanted, start in (("blur 3", (0.1, 0.1)), ("blur 1", (0.9, 0.1))):  # from a clear cell, then from a blurred one
        before = int(app(page).get_attribute("data-revision"))
        page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (1 - start[0]), box["y"] + box["height"] * 0.15, steps=7)
        page.mouse.up()
        drawn(page, wanted)
        assert int(app(page).get_attribute("data-revision")) == before + 1  # one request a stroke
    app(page).get_by_label("blur brush").uncheck()
    button(page, "Reset").click()


def test_the_users_own_picture_and_a_file_that_is_none(page, tmp_path):
    upload = app(page).get_by_label("a picture of your own")
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png", compress_level=1)  # 36 MB, more than one message may hold
    upload.set_input_files(tmp_path / "noise.png")
    drawn(page, "picture upload")
    (tmp_path / "notes.jpg").write_text("these are my notes")
    upload.set_input_files(tmp_path / "notes.jpg")
    drawn(page, "error")
    alert = app(page).get_by_role("alert")
    assert "notes.jpg cannot be used" in alert.inner_text()
    playwright.expect(alert).to_be_in_viewport(ratio=1)
    app(page).get_by_label("Dismiss the message").click()
    assert not alert.is_visible()


def test_the_bench_alone_and_a_second_view_of_it(page, catalogue, bench):
    """Each view has its own picture, and the kernel answers for it."""
    alone, (one, two) = app(page, "bench"), map(int, catalogue.rows[:2])
    alone.locator(".outcome").click(button="right")
    page.get_by_text("Create New View for Cell Output").click()
    alone.nth(1).locator(".slider").first.wait_for()
    for i, row in enumerate((one, two)):
        alone.nth(i).get_by_label("picture", exact=True).select_option(str(row))
        until(lambda i=i: alone.nth(i).get_attribute("data-picture"), str(row))
    subject, first = bench.of_row(one), alone.first
    feature_id = int(first.locator(".slider").first.get_attribute("data-id"))
    button(page, f"suppress feature {feature_id}", "bench").click()
    check_change(page, bench.change(subject, {feature_id: 0.0}), "bench")
    page.keyboard.press("Escape")
    page.locator(".lm-TabBar-tabCloseIcon").last.click()
    first.locator(".stage canvas").focus()
    page.keyboard.press("Enter")
    drawn(page, "cell 0,0", "bench")
    found = subject.codes[0, 0].nonzero()[:, 0].tolist()
    assert all(f"#{j}" in first.locator(".stage .links").inner_text() for j in found[:8])


def test_sliders_act_in_all_cells_or_in_chosen_ones(page, catalogue, bench):
    row = int(catalogue.rows[0])
    put_on_bench(page, catalogue, row)
    subject, canvas = bench.of_row(row), app(page).locator(".stage canvas")
    one, two = subject.strength.topk(2).indices.tolist()
    cell = divmod(int(subject.codes[..., one].argmax()), subject.codes.shape[1])
    multipliers, everywhere = {one: 4.0, two: 0.0}, bench.change(subject, {one: 4.0, two: 0.0})["after"]
    for feature_id, key in ((one, "End"), (two, "Home")):
        show(page, feature_id)  # which gives it a slider
        app(page).locator(f'.slider[data-id="{feature_id}"]:visible input').press(key)
    until(lambda: state(page, "[...state.multipliers]"), [[one, 4], [two, 0]])
    for cells in ((), [cell]):
        if cells:
            app(page).get_by_label("sliders in chosen cells only").check()
            canvas.focus()
            for key, n in (("ArrowUp", 9), ("ArrowLeft", 9), ("ArrowDown", cell[0]), ("ArrowRight", cell[1])):
                for _ in range(n):
                    page.keyboard.press(key)
            page.keyboard.press("Enter")
            playwright.expect(app(page).locator(".outcome")).to_contain_text("Features changed in 1 cell: ")
        made = bench.change(subject, multipliers, cells)
        check_change(page, made)
        columns = {"as it is": made["before"], "features changed": made["after"], "random directions": made["random"]}
        check_logits(page, catalogue, columns | {"reconstruction only": bench.reconstruction(subject)})
    assert (made["after"] - everywhere).abs().max() > 2e-3  # so that they cannot be mixed up
    assert link_of(page)["limit"] == f"{cell[0]},{cell[1]}"
    with beside(page) as second:
        assert second.evaluate("({ state }) => [...state.limit]") == [f"{cell[0]},{cell[1]}"]
        got = second.evaluate("({ state }) => state.after.after")
        assert got == pytest.approx(made["after"].tolist(), abs=1e-3)
    app(page).get_by_label("blur brush").check()  # one brush at a time
    assert not app(page).get_by_label("sliders in chosen cells only").is_checked()
    canvas.focus()
    page.keyboard.press("Enter")
    drawn(page, "blur 1")
    app(page).get_by_label("blur brush").uncheck()
    button(page, "Reset").click()
    assert state(page, "state.limit.size + state.brush.size + state.multipliers.size") == 0


def on_screen(page, kind="browser", names=ON_BENCH):
    for name in names:
        playwright.expect(app(page, kind).locator(name)).to_be_in_viewport(ratio=0.98)


def logits_anew(page, kind, act):
    """Act, and wait until the logits have been drawn anew."""
    before = app(page, kind).get_attribute("data-revision")
    act()
    page.wait_for_selector(f'.sae-{kind}[data-drawn=logits]:not([data-revision="{before}"])')


def check_bench_stays(page, kind="browser"):
    """The picture, the outcome and the margin stay on the screen, whichever slider moves."""
    sliders = app(page, kind).locator(".slider:visible input")
    for i in (0, sliders.count() // 2, sliders.count() - 1):
        logits_anew(page, kind, lambda i=i: sliders.nth(i).press("ArrowRight"))  # which scrolls to it
        playwright.expect(sliders.nth(i)).to_be_in_viewport(ratio=0.9)
        on_screen(page, kind)
        assert "Features changed" in app(page, kind).locator(".outcome").inner_text()
    logits_anew(page, kind, button(page, "Reset", kind).click)


def reached_by_tab(page, kind="browser"):
    """Tab through the app: every visible control gets the focus, and shows it."""
    wanted, reached = app(page, kind).evaluate(TABBED), []
    app(page, kind).focus()
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        if (at := page.evaluate(FOCUSED, kind)) is None:
            break
        assert at[1], f"no visible focus: {at[2]}"
        reached.append(at[0])
    assert set(wanted) <= set(reached) and len(wanted) > 20


@pytest.mark.parametrize("kind", ["browser", "bench"])
def test_in_jupyterlab_the_bench_stays_on_the_screen_and_the_keyboard_reaches_all_controls(page, often, kind):
    """JupyterLab's output areas catch `position: sticky`."""
    page.set_viewport_size({"width": 1400, "height": 1000})
    app(page, kind).locator(".bench").scroll_into_view_if_needed()
    check_bench_stays(page, kind)
    if kind == "browser":  # nor does it leave when the gallery or the list scrolls
        show(page, often)
        for name in (".tile:visible", ".list li:visible"):
            app(page).locator(name).last.scroll_into_view_if_needed()
            on_screen(page)
        enter(page, "Picture")
        box, panes = (app(page).locator(name).first.bounding_box() for name in (".stage canvas", ".panes"))
        assert 0 <= box["y"] and box["y"] + box["height"] <= panes["y"] < 1000  # the picture comes first
        enter(page, "Features")
    page.set_viewport_size({"width": 1500, "height": 1300})
    reached_by_tab(page, kind)


# ---------------------------------------------------------------- the whole journey
def test_the_landing_gears_feature_is_found_suppressed_and_linked(page, catalogue, bench):
    """With few clicks: find it, and suppress it in a picture of one class, against another."""
    typed, pair = "landing gear", ("210-100", "210-300")  # fixed before anything is seen
    acted = "() => acted.splice(0)"
    page.evaluate(COUNT)
    page.get_by_role("searchbox", name="search").click()
    page.keyboard.type(typed)
    offered = page.locator(".sae-browser nav").get_by_role("button", name="all features by")
    assert offered.all_inner_texts() == ["all features by nose gear", "all features by main gear"]
    offered.last.click()
    drawn(page, f"feature {listed(page)[0]}")
    ap = catalogue.parts[catalogue.parts["part"] == "main_gear"].set_index("feature_id")["ap"].round(3)
    assert ap[listed(page)].tolist() == ap.sort_values(ascending=False).tolist()[:50]
    assert page.evaluate(acted) == ["click", *typed, "click"]
    j = listed(page)[0]
    tiles = [int(tile.get_attribute("data-picture")) for tile in app(page).locator(".tile:visible").all()]
    row = next(row for row in tiles if catalogue.label(row) in pair)
    app(page).locator(f'.tile[data-picture="{row}"]').click()
    page.wait_for_selector(f'.sae-browser[data-picture="{row}"][aria-busy=false]')
    own, other = sorted(pair, key=lambda name: name != catalogue.label(row))
    against = app(page).get_by_label("class that the margin is against")
    if against.input_value() != other:
        against.select_option(other)
        drawn(page, f"against {other}")
    page.keyboard.press("s")
    until(lambda: f"#{j} ×0" in app(page).locator(".echo").text_content(), True)
    assert len(page.evaluate(acted)) <= 4
    on_screen(page, names=(*ON_BENCH, ".echo"))
    made, classes = bench.change(bench.of_row(row), {j: 0.0}), catalogue.network.classes
    wanted = [float(made[k][classes.index(own)] - made[k][classes.index(other)]) for k in ("before", "after", "random")]
    margins = app(page).locator(".echo").inner_text().partition("Margin")[2]
    margins = [float(value) for value in re.findall(r"(?<=: |→ )-?\d+\.\d+", margins)]
    assert margins == pytest.approx(wanted, abs=6e-3)
    place, echo = link_of(page), app(page).locator(".echo").inner_text()
    wanted = {"feature": str(j), "picture": str(row), "against": other, "x": f"{j}:0"}
    assert {name: place[name] for name in wanted} == wanted
    with beside(page) as second:
        assert second.locator(".echo").inner_text() == echo
    button(page, "Reset").click()
    enter(page, "Features")
    search(page, "")


# ---------------------------------------------------------------- the notebook: themes, keyboard, voila
def serious(page, *where):
    """What axe-core finds serious, contrast included."""
    found = Axe().run(page, *where).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light", "no theme"])
def test_axe_finds_nothing_serious_in_jupyterlabs_themes(page, theme):
    """No theme: colours of a light one, color-scheme dark, and nothing that says which, as in VS Code and Colab."""
    if theme == "no theme":
        page.evaluate("document.body.removeAttribute('data-jp-theme-light'); document.body.style.colorScheme = 'dark'")
    else:
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        for name, act in (("Theme", "hover"), (theme, "click")):
            getattr(page.locator(".lm-Menu-itemLabel").get_by_text(name, exact=True), act)()
        dark = "(dark) => document.body.dataset.jpThemeLight === String(!dark)"
        page.wait_for_function(dark, arg=theme.endswith("Dark"))
    for kind in ("browser", "bench"):
        app(page, kind).scroll_into_view_if_needed()
        assert not serious(page, f".sae-{kind}")
    page.evaluate("document.body.dataset.jpThemeLight = 'true'; document.body.style.colorScheme = ''")


# ---------------------------------------------------------------- links, two browsers, voila
def test_a_second_browser_starts_as_the_first_and_then_goes_its_own_way(page, catalogue, often):
    app(page).get_by_text("Filters", exact=True).click()
    app(page).get_by_label("filter by part").select_option(catalogue.table["part"].dropna().mode()[0])
    app(page).get_by_label("filter by label").select_option("none")
    app(page).get_by_label("sort by").select_option("max")
    app(page).get_by_label("smallest first").check()
    page.get_by_role("button", name="+ filter").click()
    app(page).get_by_label("at least").fill("0.5")
    show(page, often)
    gallery = app(page).first.get_by_role("main").get_by_role("combobox")
    gallery.select_option("random")
    until(lambda: state(page, "state.view.how"), "random")
    app(page).get_by_label("close-ups").check()
    drawn(page, "gallery")
    now = """(root) => [root.dataset.feature, root.dataset.picture, root.dataset.entrance,
      [...root.querySelectorAll('.panes select, .panes input')].filter((each) => each.checkVisibility()).map((each) => [
        each.ariaLabel || each.labels[0]?.innerText, each.type === 'checkbox' ? each.checked : each.value]),
      root.querySelector('.pager span').innerText.split(' of ')[1]]"""
    wanted, first = app(page).evaluate(now), app(page).first
    with beside(page) as second:
        until(lambda: second.evaluate(now), wanted)
        boxes = [each.bounding_box() for each in (first, second)]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
        second.press("ArrowRight")
        until(lambda: second.get_attribute("data-feature") != str(often), True)
        other = second.get_attribute("data-picture")
        first.get_by_label("picture", exact=True).select_option(index=1)
        until(lambda: first.get_attribute("data-picture") != other, True)
        assert first.get_attribute("data-feature") == str(often) and second.get_attribute("data-picture") == other
    for name in ("close-ups", "smallest first"):
        app(page).get_by_label(name).uncheck()
    gallery.select_option("top")
    app(page).get_by_label("remove this filter").click()
    for name, value in (("sort by", "part_ap"), ("filter by part", ""), ("filter by label", "")):
        app(page).get_by_label(name).select_option(value)
    app(page).locator(".filters summary").click()


@contextmanager
def voila(chromium, folder, path, **environment):
    """A page with all of a notebook's outputs."""
    words = ["voila", str(path), "--no-browser", "--Voila.ip=127.0.0.1"]
    options = {"cwd": NOTEBOOK.parents[1], "env": os.environ | environment}
    with server(folder, r"http://127\.0\.0\.1:\d+/", *words, **options) as address:
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(START)
        page.goto(address)
        drawn(page, "ready")
        yield page


def test_a_link_says_what_it_cannot_restore(chromium, browser_study, catalogue, tmp_path):
    row = int(catalogue.rows[0])
    lost = f"in=picture&picture={row}&cell=0,1&limit=99,0;x&blur=0,0&plain=1&heat=0.5&ranges=no_column~1~2"
    code = ["from aircraft_sae.study import Study\nfrom aircraft_sae.view.browser import FeatureBrowser"]
    code += [f"FeatureBrowser(Study.open(), at={at!r})" for at in (lost, "sae=0123abcd&feature=1")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    write(new_notebook(cells=[*map(new_code_cell, code)], metadata=kernel), tmp_path / "link.ipynb")
    with voila(chromium, tmp_path, tmp_path / "link.ipynb", AIRCRAFT_SAE_DATA_DIR=str(browser_study.data_dir)) as page:
        first, second = (each.get_by_role("alert") for each in app(page).all())
        for alert, part in ((first, "no column"), (first, "chooses cells that this"), (second, "another autoencoder")):
            until(lambda alert=alert, part=part: part in alert.inner_text(), True)
        place = link_of(page)
        assert place["picture"] == str(row) and place["cell"] == "0,1" and place["blur"] == "0,0"
        assert place["plain"] == "1" and place["heat"] == "0.5" and "ranges" not in place


def test_voila_serves_the_notebook_from_the_top_folder_at_any_width(chromium, browser_study, tmp_path):
    with voila(chromium, tmp_path, "notebooks/06_explore.ipynb") as page:
        drawn(page, "ready", "bench")
        press(page, "ArrowRight", f"feature {listed(page)[1]}")
        for width in (400, 700, 900, 1500):
            page.set_viewport_size({"width": width, "height": 1200})
            assert app(page).evaluate("(root) => root.scrollWidth <= root.clientWidth")  # nothing sticks out
            label, tile, row = (app(page).locator(name).first.bounding_box() for name in (
                "[aria-label=label]", ".tile", ".list"))  # fmt: skip
            # the label beside the gallery, or above it; the list beside the gallery
            assert label["y"] + label["height"] < (1200 if width >= 1100 else tile["y"])
            assert (row["x"] + row["width"] < tile["x"]) == (width > 640)
            box, hint = app(page).locator(".details .wide"), app(page).locator(".details").get_by_text("sideways")
            over = box.evaluate("(box) => box.scrollWidth > box.clientWidth")
            assert hint.is_visible() == over == (box.get_attribute("tabindex") == "0") and (over or width > 400)
            page.set_viewport_size({"width": width, "height": 1000})
            app(page).evaluate("(root) => root.scrollIntoView()")
            check_bench_stays(page)
            if width > 640:  # nor does the bench leave when the gallery scrolls
                app(page).locator(".tile:visible").last.scroll_into_view_if_needed()
                on_screen(page)
            for tab in TABS:
                enter(page, tab)
                assert not serious(page, ".sae-browser")
            page.get_by_role("tab", name="Parts").press("ArrowRight")  # arrows on a tab go to the next
            assert page.evaluate("document.activeElement.textContent") == "Picture"
            enter(page, "Features")
            reached_by_tab(page)


# ---------------------------------------------------------------- pages of the report
def test_a_notebooks_page_folds_code_leads_back_and_names_its_figures(chromium, tmp_path):
    figure = new_output("display_data", {"image/jpeg": base64.b64encode(as_jpeg(Image.new("RGB", (9, 9)), 9)).decode()})
    cells = [new_markdown_cell("# Title"), new_markdown_cell("## Which one?"), new_code_cell("1 + 1", outputs=[figure])]
    write_page(tmp_path / "05.html", "05", new_notebook(cells=cells))
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto((tmp_path / "05.html").as_uri())
        assert page.locator("img").get_attribute("alt") == "Which one?"
        links = page.get_by_role("link").evaluate_all("all => all.map((each) => each.getAttribute('href'))")
        assert links[:2] == ["index.html", "#Which-one?"]
        assert not page.get_by_text("1 + 1").is_visible()
        page.get_by_text("code", exact=True).click()
        assert page.locator(".jp-CodeMirrorEditor").is_visible()
        assert ("invert" in page.evaluate("getComputedStyle(document.documentElement).filter")) == (scheme == "dark")
