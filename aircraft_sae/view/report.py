"""The report of a run: one HTML page with the answer, figures, links, time and memory, versions and settings."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

from aircraft_sae.config import StudyConfig
from aircraft_sae.store import META, read_json, stage_metas, write_text

HERE = Path(__file__).parent
SENTENCES = tomllib.loads((HERE / "report.toml").read_text(encoding="utf-8"))
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RECORD = "aircraft_sae"  # the entry of an executed notebook's metadata where the runner keeps its record


def write_report(folder: Path, config: StudyConfig, notebooks: Mapping, seconds: float, failure: str = "") -> Path:
    """Write report/index.html of the study in `folder` and return its path.

    notebooks: {name: executed notebook}, a failed one last; failure: its message.
    """
    from jinja2 import Template

    records = {name: notebook.metadata[RECORD] for name, notebook in notebooks.items()}
    numbers = read_numbers(folder / "results", [name for name, record in records.items() if record["key"]])
    metas = sorted(stage_metas(folder).items(), key=lambda item: (folder / item[0] / META).stat().st_mtime)
    page = Template((HERE / "report.html").read_text(encoding="utf-8"), autoescape=True).render(
        name=config.name, failure=ANSI.sub("", failure),
        answer=answer(numbers),
        figures=[figure for name, notebook in notebooks.items() for figure in _figures(name, notebook)],
        links=[_link(name, notebook) for name, notebook in notebooks.items()],
        seconds=seconds, settings=json.dumps(asdict(config), indent=2),
        notebooks=[(name, each.get("seconds", 0), each.get("peak_memory_bytes", 0)) for name, each in records.items()],
        stages=[(name, each["seconds"], each["peak_memory_bytes"], sum(f["bytes"] for f in each["files"].values()))
                for name, each in metas],
        versions=sorted({f"{name} {n}" for _, meta in metas for name, n in meta.get("versions", {}).items()}),
    )  # fmt: skip
    index = folder / "report" / "index.html"
    write_text(index, page)
    return index


def write_page(path: Path, title: str, notebook) -> None:
    """Write an executed notebook as an HTML page that needs no network."""
    from nbconvert import HTMLExporter

    diagrams = dict.fromkeys(("mermaid_js_url", "mermaid_layout_elk_js_url"), "")
    exporter, notebook = HTMLExporter(embed_images=True, **diagrams), deepcopy(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = _plain(output["data"]["text/markdown"])
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    extras = (HERE / "notebook.html").read_text(encoding="utf-8")
    write_text(path, re.sub(r"<script src=.*?</script>", "", page).replace("</body>", f"{extras}</body>"))


def _plain(markdown: str) -> str:
    """Markdown with HTML and links disabled: it may hold class names, which users choose."""
    return markdown.replace("<", "&lt;").replace("](", "]\\(")


def read_numbers(results: Path, names: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """The recorded numbers of these notebooks: {"01/chance": {"value": …, "low": …, "high": …, "n": …}}."""
    return {f"{name[:2]}/{key}": each for name in names for key, each in read_json(results / f"{name}.json").items()}


def answer(numbers: Mapping) -> list[str]:
    """The sentences whose numbers are all known; numbers: from `read_numbers`."""
    known = [each for each in SENTENCES["answer"] if all(key in numbers for key in each["numbers"])]
    return [each["text"].format(*(numbers[key] for key in each["numbers"])) for each in known]


def _figures(name: str, notebook) -> Iterator[tuple[str, str, str, str]]:
    """(question of its section, image, the takeaway after it as HTML, link) of each figure tagged "report"."""
    from nbconvert.filters import markdown2html

    question = ""
    for at, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            question = next(iter(re.findall(r"^##? (.*)$", cell.source, re.MULTILINE)), question)
        if "report" in cell.metadata.get("tags", []):
            said = next((text for later in notebook.cells[at:] for text in _outputs(later, "text/markdown")), "")
            for kind in ("image/png", "image/jpeg"):
                for data in _outputs(cell, kind):
                    place = f"{name}.html#{question.replace(' ', '-')}"
                    yield question, f"data:{kind};base64,{data.strip()}", markdown2html(_plain(said)), place


def _outputs(cell, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell.get("outputs", []) if kind in output.get("data", {})]


def _link(name: str, notebook) -> tuple[str, str, str]:
    """(address, title, question) of a notebook."""
    first = notebook.cells[0].source if notebook.cells else ""
    title = re.search(r"^# (.*)$", first, re.MULTILINE)
    asked = re.search(r"\*\*Question\.\*\*\s*((?:.|\n)*?\?)", first)
    return f"{name}.html", title[1] if title else name, " ".join(asked[1].split()) if asked else ""
