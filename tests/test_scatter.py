"""Points and graphs that show patches: where, and with what text; test_in_browser.py looks at the patches."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from aircraft_sae.view.scatter import graph, scatter

SVG = "{http://www.w3.org/2000/svg}"
PATCHES = {name: [Image.new("RGB", (72, 72))] * 2 for name in "abc"}


def texts(svg):
    return [each.text for each in svg.iter(f"{SVG}text")]


def check_marks(svg, names, n_images):
    """Tab reaches these marks, and each shows its name and its patches."""
    marks = {each.get("aria-label"): each for each in svg.iter(f"{SVG}g") if each.get("tabindex") == "0"}
    assert list(marks) == names
    for name, mark in marks.items():
        assert texts(mark) == [name] and len(list(mark.iter(f"{SVG}image"))) == n_images
    return [mark.find(f"{SVG}circle") for mark in marks.values()]


def test_points_are_in_their_own_places_and_colours():
    xy, names = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]]), ["a", "b", "<c>", "d"]
    svg = ElementTree.fromstring(scatter(xy, ["5x5", "1x1"] * 2, names, [*PATCHES.values(), []], 'four "points"'))
    assert svg.get("aria-label") == 'four "points"' and svg.get("role") == "group"
    circles = check_marks(svg, ["a", "b", "<c>"], 2)  # Tab skips a point without patches
    a, b, c = ({key: float(circle.get(key)) for key in ("cx", "cy")} for circle in circles)
    assert a["cx"] == c["cx"] < b["cx"] and c["cy"] < a["cy"] == b["cy"], "up is up"
    fills = [circle.get("fill") for circle in circles]
    assert fills[0] == fills[2] != fills[1] and {"5x5", "1x1"} <= {*texts(svg)}
    many = scatter(np.random.default_rng(0).random((12, 2)), [*"abcdefghijkl"], [""] * 12, [[]] * 12, "twelve")
    assert "#000" not in many and "currentColor" in many, "no point is black, since the page may be"


def test_a_graph_joins_its_nodes_and_tells_losses_from_gains():
    columns, edges = {"one": ["a", "b"], "two": ["c"]}, [("a", "c", -0.5), ("b", "c", 0.1)]
    svg = ElementTree.fromstring(graph(columns, edges, PATCHES, "a & b to c"))
    lines = list(svg.iter(f"{SVG}line"))
    assert [bool(line.get("stroke-dasharray")) for line in lines] == [False, True]
    assert float(lines[0].get("stroke-width")) == 6 > float(lines[1].get("stroke-width")) > 1
    assert lines[0].find(f"{SVG}title").text == "a → c: -50%" and lines[0].get("y2") == lines[1].get("y2")
    check_marks(svg, ["a", "b", "c"], 3)  # node and patches
    assert {*texts(svg)} == {"one", "two", "a", "b", "c"}
    with pytest.raises(KeyError):
        graph(columns, [("a", "d", 1.0)], PATCHES, "")
    assert "line" not in graph({"one": ["a"]}, [], PATCHES, "no edge").replace("outline", "")
