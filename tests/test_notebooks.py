"""The committed notebooks: in step with their scripts, run, and free of what belongs to one machine or one run."""

import io
import re
from contextlib import redirect_stdout

import nbformat
import pytest
from jupytext.cli import jupytext

from aircraft_sae.__main__ import NOTEBOOKS, WIDGET_VIEW

PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|tmp|work|Users|opt|usr|mnt)/|\b[A-Za-z]:\\\w")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def as_script(path):
    """The percent script that jupytext makes of a notebook with the repository's settings."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(output):
        jupytext([str(path), "--to", "py:percent", "--output", "-", "--quiet"])
    return output.buffer.getvalue().decode()


def test_every_notebook_has_its_pair():
    assert PATHS and {path.stem for path in PATHS} == {path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.py")}


def test_script_and_notebook_are_in_step(path):
    assert path.with_suffix(".py").read_text(encoding="utf-8") == as_script(path), f"run jupytext --sync {path.name}"


def test_every_code_cell_has_run_in_order_without_error(code_cells):
    assert [cell.execution_count for cell in code_cells] == list(range(1, len(code_cells) + 1))
    assert not [output for cell in code_cells for output in cell.outputs if output.output_type == "error"]


def test_some_output_is_compared_when_the_notebooks_are_tested(code_cells):
    checked = [cell for cell in code_cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked and all(cell.outputs for cell in checked), "a check of nothing passes always"


def test_no_widget_state_timing_or_progress_bar_is_committed(path, code_cells):
    metadata = nbformat.read(path, as_version=4).metadata
    assert "widgets" not in metadata and not [cell for cell in code_cells if "execution" in cell.metadata]
    outputs = [output for cell in code_cells for output in cell.outputs]
    assert not [output for output in outputs if WIDGET_VIEW in output.get("data", {}) or output.get("name") == "stderr"]


def strings(value):
    """All strings in nested dicts and lists, less pictures."""
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if not str(key).startswith("image/")]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_no_path_of_a_machine_is_committed(path):
    found = [text for text in strings(nbformat.read(path, as_version=4)) if MACHINE_PATH.search(text)]
    assert not found, found[:3]


@pytest.mark.parametrize("leak", ["/home/me/x", "see /tmp/a", "'/mnt/b", "C:\\Users\\me", '"/usr/.cache/'])
def test_the_search_for_machine_paths_finds_them(leak):
    assert MACHINE_PATH.search(strings({"cells": [{"outputs": [{"text": leak}]}]})[0])
    assert not MACHINE_PATH.search("data/runs/mnt/x, https://a.org/home/b, ~/mnt/b, ratio a/tmp/b, for x in y:\n")


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith(("#", "%"))]


def test_cells_are_short_and_define_nothing(code_cells):
    for cell in code_cells:
        assert not re.search(r"^\s*(def|class|async def) ", cell.source, re.MULTILINE), cell.source
        assert len(code_lines(cell)) <= 12, f"{len(code_lines(cell))} lines: {cell.source.splitlines()[0]}"


def test_a_cell_shows_one_figure_at_most(code_cells):
    for cell in code_cells:
        assert sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in cell.outputs) <= 1


def test_there_is_more_prose_than_code(path, code_cells):
    cells = nbformat.read(path, as_version=4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words >= 4 * sum(len(code_lines(cell)) for cell in code_cells)


def numbers(takeaway):
    """Numbers that a takeaway states, less intervals and n in brackets, names of stages, and tiers."""
    plain = re.sub(r"\([^()]*\)|stage\d|mixed\d\w|tier \d|\d x \d|`[^`]*`|[A-Za-z]-?\d+", "", takeaway)
    return re.findall(r"\d[\d,.]*", plain)


def takeaways(code_cells):
    shown = (output.get("data", {}).get("text/markdown", "") for cell in code_cells for output in cell.outputs)
    return [each for text in shown for each in re.findall(r"\*\*Takeaway.*?(?=\n\n|\Z)", text, re.DOTALL)]


def test_takeaways_have_few_numbers(path, code_cells):
    for text in takeaways(code_cells):
        assert len(numbers(text)) <= 5, text
    assert takeaways(code_cells) or path.stem == "06_explore"


def test_numbers_are_counted_without_intervals():
    assert numbers("At stage4 it is 88.0% (87.8 to 88.2, n = 990) of 12 parts; tier 2 for 5.") == ["88.0", "12", "5."]


def test_every_notebook_asks_and_answers(path):
    cells = nbformat.read(path, as_version=4).cells
    assert "**Question.**" in cells[0].source and "**Runtime**" in cells[0].source
    headings = re.findall(r"^## (.*)$", "\n".join(cell.source for cell in cells), re.MULTILINE)
    assert any(each.startswith("Takeaways") for each in headings) and "What this does not show" in headings
