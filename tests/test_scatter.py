"""Points and graphs that show patches: which ones, where, and with what text."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from aircraft_sae.view.scatter import graph, scatter

SVG = "{http://www.w3.org/2000/svg}"
COLOUR = {"a": (250, 10, 10), "b": (10, 250, 10), "c": (10, 10, 250)}
PATCHES = {name: [Image.new("RGB", (72, 72), colour)] * 2 for name, colour in COLOUR.items()}


def marks_of(svg) -> dict[str, ElementTree.Element]:
    return {each.get("aria-label"): each for each in svg.iter(f"{SVG}g") if each.get("tabindex") == "0"}


def shown(mark) -> list[tuple[int, ...]]:
    """The colours of a mark's patches."""
    files = [each.get("href").partition(",")[2] for each in mark.iter(f"{SVG}image")]
    return [Image.open(io.BytesIO(base64.b64decode(each))).getpixel((9, 9)) for each in files]


def test_points_show_their_own_patches_in_their_own_places():
    xy, names = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]]), ["a", "b", "<c>", "d"]
    text = scatter(xy, ["5x5", "1x1", "5x5", "1x1"], names, [*PATCHES.values(), []], 'four "points"')
    svg = ElementTree.fromstring(text)
    assert svg.get("aria-label") == 'four "points"' and svg.get("role") == "group"
    marks = marks_of(svg)
    assert list(marks) == ["a", "b", "<c>"], "Tab skips a point without patches"
    for name, mark in marks.items():
        assert np.abs(np.subtract(shown(mark), COLOUR[name.strip("<>")])).max() < 12 and len(shown(mark)) == 2
        assert [each.text for each in mark.iter(f"{SVG}text")] == [name]
    a, b, c = ({key: float(mark.find(f"{SVG}circle").get(key)) for key in ("cx", "cy")} for mark in marks.values())
    assert a["cx"] == c["cx"] < b["cx"] and c["cy"] < a["cy"] == b["cy"], "up is up"
    fills = [mark.find(f"{SVG}circle").get("fill") for mark in marks.values()]
    assert fills[0] == fills[2] != fills[1]
    assert {"5x5", "1x1"} <= {each.text for each in svg.iter(f"{SVG}text")}


def test_no_point_is_black_since_the_page_may_be():
    text = scatter(np.random.default_rng(0).random((12, 2)), [*"abcdefghijkl"], [""] * 12, [[]] * 12, "twelve")
    assert "#000" not in text and "currentColor" in text


def test_a_graph_joins_its_nodes_and_tells_losses_from_gains():
    columns, edges = {"one": ["a", "b"], "two": ["c"]}, [("a", "c", -0.5), ("b", "c", 0.1)]
    svg = ElementTree.fromstring(graph(columns, edges, PATCHES, "a & b to c"))
    lines = list(svg.iter(f"{SVG}line"))
    assert [bool(line.get("stroke-dasharray")) for line in lines] == [False, True]
    assert float(lines[0].get("stroke-width")) == 6 > float(lines[1].get("stroke-width")) > 1
    assert lines[0].find(f"{SVG}title").text == "a → c: -50%" and lines[0].get("y2") == lines[1].get("y2")
    for name, mark in marks_of(svg).items():
        assert len(shown(mark)) == 3 and np.abs(np.subtract(shown(mark), COLOUR[name])).max() < 12  # node and patches
    assert {each.text for each in svg.iter(f"{SVG}text")} == {"one", "two", "a", "b", "c"}
    with pytest.raises(KeyError):
        graph(columns, [("a", "d", 1.0)], PATCHES, "")
    assert "line" not in graph({"one": ["a"]}, [], PATCHES, "no edge").replace("outline", "")
