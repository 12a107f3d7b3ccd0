"""Points and graphs that show patches under the pointer: SVG and CSS, no script and no kernel."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from aircraft_sae.view.browser.catalogue import as_jpeg
from aircraft_sae.view.plots import BLUE, COLOURS, GREY, ORANGE

SIDE, PATCH, NODE, GAP = 520, 72, 44, 12
_STYLE = """<style>.points text { fill: currentColor; font: 13px sans-serif; } .points .tip { visibility: hidden; }
.points g:hover > .tip, .points g:focus > .tip { visibility: visible; } .points g:focus { outline: none; }
.points:has(g[tabindex]:hover) g:focus:not(:hover) > .tip { visibility: hidden; }
.points g:hover > .mark, .points g:focus > .mark { stroke: currentColor; stroke-width: 3; }</style>"""


def scatter(
    xy: np.ndarray, groups: Sequence[str], names: Sequence[str], patches: Sequence[Sequence[Image.Image]], alt: str
) -> str:
    """HTML of points xy (n, 2), coloured by group; a point shows its name and patches under the pointer or by Tab.

    alt: the figure in words. Points with patches are larger; the others show nothing.
    """
    low, high = xy.min(0), xy.max(0)
    at = 10 + (SIDE - 20) * (xy - low) / np.maximum(high - low, 1e-9)
    kinds, marks = sorted(set(groups)), []
    colour = dict(zip(kinds, [each for each in COLOURS if each != "#000000"] * len(kinds), strict=False))
    for i, kind in enumerate(kinds):
        marks.append(f'<circle cx="{SIDE + 18}" cy="{14 + 18 * i}" r="5" fill="{colour[kind]}"/>')
        marks.append(f'<text x="{SIDE + 30}" y="{19 + 18 * i}">{escape(kind)}</text>')
    for (x, y), group, name, own in sorted(zip(at, groups, names, patches, strict=True), key=lambda each: len(each[3])):
        look = f'r="{5 if own else 2}" opacity="{1 if own else 0.6}" fill="{colour[group]}"'
        dot = f'<circle class="mark" cx="{x:.1f}" cy="{SIDE - y:.1f}" {look}/>'
        marks.append(_focusable(dot, name, own, SIDE + GAP, 150) if own else dot)
    return _svg("".join(marks), SIDE + 300, SIDE, alt)


def graph(
    columns: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str, float]],
    patches: Mapping[str, Sequence[Image.Image]], alt: str,
) -> str:  # fmt: skip
    """HTML of nodes in titled columns, drawn as their first patches, and of edges (from, to, strength) between them.

    An edge's width shows its strength relative to the largest; negative ones are solid, positive ones dashed. Nodes
    behave as points of `scatter` do. Raises: KeyError for an edge of a node in no column.
    """
    at, marks, lines, width = {}, [], [], 150 * len(columns) - 60
    height = 40 + (NODE + GAP) * max(map(len, columns.values()))
    for i, (title, own) in enumerate(columns.items()):
        marks.append(f'<text x="{2 + 150 * i}" y="16">{escape(title)}</text>')
        at |= {name: (2 + 150 * i, 30 + j * (NODE + GAP)) for j, name in enumerate(own)}
    most = max((abs(strength) for *_, strength in edges), default=1.0)
    for start, end, strength in edges:
        (x1, y1), (x2, y2) = at[start], at[end]
        style = f'stroke="{BLUE}"' if strength < 0 else f'stroke="{ORANGE}" stroke-dasharray="6 4"'
        place = f'x1="{x1 + NODE}" y1="{y1 + NODE / 2}" x2="{x2}" y2="{y2 + NODE / 2}"'
        title = f"<title>{escape(f'{start} → {end}: {strength:+.0%}')}</title>"
        lines.append(f'<line {place} {style} stroke-width="{1 + 5 * abs(strength) / most:.1f}">{title}</line>')
    for name, (x, y) in at.items():
        frame = f'<rect class="mark" x="{x}" y="{y}" width="{NODE}" height="{NODE}" fill="none" stroke="{GREY}"/>'
        node = _image(patches[name][0], x, y, NODE) + frame if len(patches[name]) else frame
        marks.append(_focusable(node, name, patches[name], width + GAP, 40))
    return _svg("".join(lines + marks), width + 230, max(height, 60 + 3 * (PATCH + 6)), alt)


def _focusable(mark: str, name: str, patches: Sequence[Image.Image], x: int, y: int) -> str:
    """A mark that Tab reaches, with what it then shows: its name, and patches in a column."""
    shown = "".join(_image(each, x, y + i * (PATCH + 6), PATCH) for i, each in enumerate(patches))
    tip = f'<g class="tip"><text x="{x}" y="{y - GAP}">{escape(name)}</text>{shown}</g>'
    return f'<g tabindex="0" role="img" aria-label="{escape(name)}">{mark}{tip}</g>'


def _image(picture: Image.Image, x: int, y: int, size: int) -> str:
    content = base64.b64encode(as_jpeg(picture, PATCH)).decode()
    return f'<image x="{x}" y="{y}" width="{size}" height="{size}" href="data:image/jpeg;base64,{content}"/>'


def _svg(content: str, width: int, height: int, alt: str) -> str:
    box = f'viewBox="0 0 {width} {height}" width="{width}" role="group" aria-label="{escape(alt)}"'
    return f'<svg class="points" xmlns="http://www.w3.org/2000/svg" {box}>{_STYLE}{content}</svg>'
