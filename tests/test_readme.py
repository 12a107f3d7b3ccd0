"""The README says what the committed results say, and its Python runs."""

import json
import re
from pathlib import Path

import pytest

from aircraft_sae.view import report

TOP = Path(__file__).resolve().parents[1]
README, DETAILS = ((TOP / name).read_text(encoding="utf-8") for name in ("README.md", "data/README.md"))
RESULTS = TOP / "data" / "results" / "hangar"


def section(title, text=README):
    return re.search(rf"^## {title}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)[1]


def test_the_readme_has_two_pages():
    assert len(README.split()) < 1400


def test_the_answer_is_that_of_the_committed_results():
    numbers = report.read_numbers(RESULTS, sorted(path.stem for path in RESULTS.glob("*.json")))
    lines = report.answer(numbers)
    items = re.findall(r"^\d+\. (.*(?:\n   .*)*)", section("The answer"), re.MULTILINE)
    listed = [" ".join(item.split()) for item in items]
    assert len(lines) == 5 and listed == lines


def told(text, number, percent):
    """Whether a text is this number, rounded to the digits that it has."""
    digits = len(text.partition(".")[2])
    return number is not None and abs(float(text) - number * (100 if percent else 1)) < 0.5001 * 10**-digits


def entries():
    for path in (TOP / "data" / "results").glob("*/*.json"):
        yield from json.loads(path.read_text(encoding="utf-8")).values()


def test_every_interval_is_one_of_the_committed_results():
    number = r"(-?\d[\d.]*)"
    given = re.findall(rf"{number}(%?)\s+\[{number}%?, {number}%?\]", section("Results in full", DETAILS))
    assert len(given) == len(re.findall(r"\[[-\d.%]+, [-\d.%]+\]", section("Results in full", DETAILS))) > 15
    for value, percent, *ends in given:
        assert any(
            told(value, entry["value"], percent) and all(map(told, ends, (entry["low"], entry["high"]), [percent] * 2))
            for entry in entries()
        ), f"{value}{percent} {ends} is in no file of data/results"


def test_nothing_waits_to_be_filled_in():
    assert not re.search(r"\|\s*T\d\d\s*\||TODO|TBD", README + DETAILS)


@pytest.mark.parametrize("text, folder", [(README, TOP), (DETAILS, TOP / "data")], ids=["README", "data/README"])
def test_links_and_pictures_are_there(text, folder):
    for target in re.findall(r"\]\(([^)#][^)]*)\)", text):
        assert target.startswith("https://") or (folder / target.partition("#")[0]).exists(), target


def test_the_library_example_runs(smoke_study):
    code = re.search(r"```python\n(.*?)```", section("As a library", DETAILS), re.DOTALL)[1]
    names = {}
    exec(code.replace('Study.open("hangar")', "Study.open()"), names)
    n_test = len(names["trial"].rows)
    assert names["effects"]["logit"].shape == (n_test, names["sae"].d_sae) and 0 < len(names["strongest"]) <= 9
    assert names["effects"]["logit"].any()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README + DETAILS, re.DOTALL))
def test_every_example_imports_what_is_there(code):
    compile(code, "README.md", "exec")
    for line in re.findall(r"^(?:from|import) .*$", code, re.MULTILINE):
        exec(line, {})
