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


def test_no_cell_defines_a_function_or_class_or_is_long(code_cells):
    for cell in code_cells:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert not re.search(r"^\s*(def|class|async def) ", cell.source, re.MULTILINE), cell.source
        assert len(lines) <= 12, f"{len(lines)} lines: {lines[0]}"
