"""The package matches its map: imports go down, public names have docstrings, no file is long."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import aircraft_sae
from aircraft_sae.store import shipped

PACKAGE = Path(aircraft_sae.__file__).parent
ROOMS = re.findall(r"`(\w+)`", aircraft_sae.__doc__)  # from the ground up
INHERITED = ("forward", "make_params", "transform", "reconstruct", "close")  # documented in their base classes


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
    """Rooms of the package that a module imports, at any place in its source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "aircraft_sae":
            inner = node.module.split(".")[1:2]
            yield from inner or [alias.name for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from [name[1] for name in names if name[0] == "aircraft_sae" and len(name) > 1]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"relative import in line {node.lineno}"


def upward(path, source):
    own = room(path)
    return {
        (own, other)
        for other in imported(ast.parse(source))
        if other != own and (other not in ROOMS or ROOMS.index(other) >= ROOMS.index(own))
    }


def test_the_map_lists_every_room():
    assert set(ROOMS) == {room(path) for path in modules()} - {"__init__"} and len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    if path != PACKAGE / "__init__.py":
        assert upward(path, path.read_text(encoding="utf-8")) == set()


def test_an_upward_import_would_be_found():
    lines = "import aircraft_sae.study", "from aircraft_sae.study import Study", "from aircraft_sae import study"
    for line in (*lines, f"def f():\n    {lines[1]}", "from . import study"):
        assert upward(PACKAGE / "sae.py", line), line
    assert not upward(PACKAGE / "sae.py", "import numpy\nfrom aircraft_sae.config import SAEConfig")


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_names_have_docstrings_and_files_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    tree = ast.parse(source)
    assert ast.get_docstring(tree) or not source
    for outer in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in outer.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                plain = {"property", "cached_property"} & {getattr(each, "id", "") for each in node.decorator_list}
                overrides = isinstance(outer, ast.ClassDef) and node.name in INHERITED
                assert ast.get_docstring(node) or plain or overrides, f"{path.name}: {node.name}"


def test_nothing_is_unpickled():
    ways = r"\bimport pickle|pickle\.load|joblib(?! import cpu_count\n)|allow_pickle=True|weights_only=False"
    for path in modules():
        assert not re.search(ways, path.read_text(encoding="utf-8")), path


def test_a_wheel_holds_everything_in_a_checkout():
    """By pyproject.toml: every folder of modules, and every file that these read."""
    checkout = PACKAGE.parent
    setuptools = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: setuptools["package-dir"].get(name, name.replace(".", "/")) for name in setuptools["packages"]}
    assert set(folders.values()) >= {path.parent.relative_to(checkout).as_posix() for path in modules()}
    kinds = {*setuptools["package-data"]["*"], "*.py"}
    for folder in folders.values():
        for path in (checkout / folder).glob("*.*"):
            assert f"*{path.suffix}" in kinds or path.suffix in (".ipynb", ".md", ".pyc"), path
    for name, folder in (("notebooks", "notebooks"), ("data.weights", "data/weights")):
        assert folders[f"aircraft_sae.{name}"] == folder and shipped(folder) == checkout / folder
