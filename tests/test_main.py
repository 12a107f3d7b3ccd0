"""The command, on notebooks of a few lines."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

import aircraft_sae.__main__ as command
from aircraft_sae import store

GOOD = """# %% [markdown]
# # Question
# %%
import os, sys, time
from tqdm import tqdm
print(os.path.realpath(sys.executable) == os.path.realpath(os.environ["WANTED"]), os.environ["AIRCRAFT_SAE_PRESET"])
for _ in tqdm(range(3), "training"):
    time.sleep(0.01)
# %% tags=["report"]
import matplotlib.pyplot as plt
plt.plot([1, 2]);
# %%
from ipywidgets import interact
interact(lambda x: print(x), x=(0, 5));
# %%
6 * 7
"""


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Write scripts as the notebooks to run, with a data folder beside them; returns their folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(command, "NOTEBOOKS", folder)
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANTED", sys.executable)

    def write(**scripts):
        for name, script in scripts.items():
            (folder / f"{name}.py").write_text(script)
        return folder

    return write


def run(*words):
    return command.main(["--preset", "smoke", *words])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_no_writable_home_is_needed(notebooks, monkeypatch, capfd):
    notebooks(**{"01_first": GOOD})
    monkeypatch.setenv("HOME", "/proc")
    for name in ("USER", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    assert run() == 0 and "True smoke" in capfd.readouterr().err


def test_run_shows_progress_and_writes_notebooks_and_one_offline_report(notebooks, tmp_path, monkeypatch, capfd):
    shown = {command.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "a widget", "image/png": "iVBORw0KGgo="}
    last = f"# %%\n'the last one'\n# %%\nfrom IPython.display import display\ndisplay({shown}, raw=True)"
    folder = notebooks(**{"02_last": last, "01_first": GOOD})
    other = {"argv": ["/bin/false"], "display_name": "another environment", "language": "python"}
    store.write_json(tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json", other)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("TQDM_DISABLE")
    assert run("--in-place") == 0
    output, errors = capfd.readouterr()
    assert "training: 100%" in errors and "01_first: code cell 4 of 4\n" in errors and "True smoke" in errors
    assert output.splitlines()[-1].startswith("Done in ")
    modules = Path(command.__file__).parent.rglob("*.py")
    assert not any("tqdm.auto" in path.read_text() for path in modules), "widgets, which the command cannot show"
    report = tmp_path / "data" / "runs" / "smoke" / "report"
    names = [f"{name}.{end}" for name in ("01_first", "02_last") for end in ("html", "ipynb")]
    assert sorted(path.name for path in report.iterdir()) == [*names, "index.html"]
    page, index = (report / "01_first.html").read_text(), (report / "index.html").read_text()
    assert page.index('id="Question"') < page.rindex("data:image/png;base64")
    assert '<h3>Question</h3><img alt="Question" src="data:image/png' in index, "the tagged figure"
    assert "the last one" in (report / "02_last.html").read_text() and 'href="02_last.html"' in index
    for each in (page, index):
        assert not re.findall(r'<script src|(?:src=|href=|import\()"https?:', each), "the page needs a network"

    executed, last = (nbformat.read(folder / f"{name}.ipynb", as_version=4) for name in ("01_first", "02_last"))
    kinds = [[output.output_type for output in cell.outputs] for cell in executed.cells if cell.cell_type == "code"]
    assert kinds == [["stream"], ["display_data"], ["stream"], ["execute_result"]], "no stderr, no widget"
    assert set(last.cells[-1].outputs[0].data) == {"text/plain", "image/png"}, "a picture stands in for its widget"
    assert "widgets" not in executed.metadata and "execution" not in executed.cells[1].metadata
    assert "True smoke" in executed.cells[1].outputs[0].text, "wrong interpreter or preset"
    assert executed.cells[-1].source == "6 * 7"


COUNTS = """# %%
from pathlib import Path
from aircraft_sae.store import make_stage, write_json
folder, data = Path(DATA) / "runs" / "smoke", Path(DATA)
make_stage(folder / "NAME", "NAME", {}, lambda work: (work / "a").write_text("NAME"))
write_json(folder / "results" / "NAME.json", {})
with (data / "executed").open("a") as file:
    file.write("NAME ")
"""


def test_a_notebook_is_executed_again_only_if_something_changed(notebooks, tmp_path, monkeypatch, capfd):
    data = tmp_path / "data"
    scripts = {name: COUNTS.replace("DATA", repr(str(data))).replace("NAME", name) for name in ("01_a", "02_b")}
    folder, study = notebooks(**scripts), data / "runs" / "smoke"

    def executed(*words):
        (data / "executed").unlink(missing_ok=True)
        assert run(*words) == 0
        return (data / "executed").read_text().split() if (data / "executed").exists() else []

    both = ["01_a", "02_b"]
    assert executed() == both
    assert executed() == [] and "02_b: up to date" in capfd.readouterr().err
    (folder / "02_b.py").write_text(scripts["02_b"] + "1\n")
    assert executed() == ["02_b"], "its text"
    (study / "02_b" / "a").write_text("20_b")
    assert executed() == ["02_b"], "a damaged artifact of the same length"
    shutil.rmtree(study / "01_a")
    assert executed() == ["01_a"], "a missing artifact; the other notebook finds it as it was"
    (study / "results" / "01_a.json").write_text("{}")
    assert executed() == ["01_a"], "its numbers"
    (study / "report" / "02_b.ipynb").write_text("{")
    assert executed() == ["02_b"], "its outputs"
    (study / "report" / "02_b.html").unlink()
    assert executed() == ["02_b"], "its page"
    assert executed("--again") == both and not (data / "results").exists()
    assert executed("--record") == [] and (data / "results" / "smoke" / "02_b.json").is_file()
    (folder / "02_b.py").write_text(scripts["02_b"].replace('"02_b", {}', '"another config", {}'))
    assert executed() == ["02_b"] and executed() == ["01_a"] and executed() == [], "a stage that was made again"
    report = study / "report" / "01_a.ipynb"
    report.write_text(report.read_text().replace("make_stage", "made_stage"))
    assert executed() == ["01_a"], "an executed notebook edited by hand"
    monkeypatch.setattr(command, "version", lambda name: "0")
    assert executed() == both, "a library"


def test_a_users_own_pictures_are_looked_at_each_time(notebooks, tmp_path):
    notebooks(**{name: "# %%\n1" for name in ("01_a", "02_b")})
    first, second = command.find(tmp_path / "notebooks").values()
    for _ in range(2):
        own = command.Runner(tmp_path / "runs" / "smoke", {}, rendered=False)
        assert own.kept(first) is None
        own.run(first)
        own.kept(second) or own.run(second)
    assert own.kept(first) and own.kept(second)


def test_the_network_reaches_the_notebooks(notebooks, tmp_path, monkeypatch):
    """A file by its absolute path, since kernels run in another folder; a shipped one by its name."""
    write = f"open({str(tmp_path / 'seen')!r}, 'w').write(__import__('os').environ['AIRCRAFT_SAE_NETWORK'])"
    notebooks(**{"09_a": f"# %%\n{write}"})
    monkeypatch.chdir(tmp_path)
    for given, wanted in (("w.pth", str(tmp_path.resolve() / "w.pth")), ("hangar_inceptionv1", "hangar_inceptionv1")):
        assert run("09", "--network", given) == 0 and (tmp_path / "seen").read_text() == wanted
    assert run("09") == 0 and (tmp_path / "seen").read_text() == ""


def test_names_in_outputs_stay_text(notebooks, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> [a](javascript:alert(1))"
    lines = '# %% tags=["report"]', "from IPython.display import Markdown, display", "import matplotlib.pyplot as plt"
    notebooks(**{"01_a": "\n".join([*lines, f"display(Markdown({evil!r}))", "plt.plot([1, 2]);"])})
    assert run() == 0
    for name in ("index", "01_a"):
        page = (tmp_path / "data" / "runs" / "smoke" / "report" / f"{name}.html").read_text()
        assert "alert(1)" in page and not re.search(r"<script>alert|<img src=x|href=.javascript:alert", page)


def test_run_stops_at_the_first_failing_cell_shows_it_and_executes_it_again(notebooks, tmp_path, capfd):
    y = f"y = int(__import__('os').path.exists({str(tmp_path / 'mended')!r}))"
    bad = f"# %% [markdown]\n# text\n# %%\n{y}\n# %%\nprint(1 / y)\n# %%\n3"
    folder = notebooks(**{"01_bad": bad, "02_never": "# %%\nopen('ran', 'w')"})
    assert run("--in-place") == 1
    errors = capfd.readouterr().err
    assert "Stopped in 01_bad.py, code cell 2 of 3" in errors
    assert "print(1 / y)" in errors and "ZeroDivisionError: division by zero" in errors and "Traceback" in errors
    assert sorted(path.name for path in folder.iterdir()) == ["01_bad.py", "02_never.py"]
    for name in ("01_bad", "index"):
        page = (tmp_path / "data" / "runs" / "smoke" / "report" / f"{name}.html").read_text()
        assert "ZeroDivisionError" in page and "\x1b" not in page
    (tmp_path / "mended").touch()
    assert run() == 0 and (folder / "ran").exists()
    notebooks(**{"01_bad": "# %%\nimport os\nos.kill(os.getpid(), 9)"})
    assert run() == 1
    assert "os.kill(os.getpid(), 9)\n\nThe kernel died" in capfd.readouterr().err


SLOW = "# %%\nimport os, time\nprint(os.getpid(), flush=True)\n# %%\ntime.sleep(60)"


def run_apart(folder):
    """The command in a process of its own, with a pipe from its stderr."""
    code = f"""
import pathlib, aircraft_sae.__main__ as command
command.NOTEBOOKS = pathlib.Path({str(folder)!r})
exit(command.main(["--preset", "smoke"]))
"""
    words = [sys.executable, "-c", code]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)


def kernel_of(process):
    """The process whose id the first cell of SLOW prints."""
    pid = next(line for line in iter(process.stderr.readline, "") if line.strip().isdigit())
    return psutil.Process(int(pid))


@pytest.mark.parametrize("group", [False, True], ids=["the command", "all in the terminal"])
def test_ctrl_c_ends_the_kernel_and_says_what_is_kept(notebooks, group):
    process = run_apart(notebooks(**{"01_slow": SLOW, "02_never": "# %%\n1"}))
    kernel = kernel_of(process)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("Interrupted. The next run resumes")
    assert "Traceback" not in said and "02_never" not in said
    assert psutil.wait_procs([kernel], 20)[0], "it lives on"


@pytest.mark.parametrize("after", [0, 0.1, 0.3, 1])
def test_ctrl_c_between_two_notebooks_is_heard(notebooks, after):
    late = f"subprocess.Popen(['sh', '-c', f'sleep {after}; kill -INT {{os.getppid()}}'], start_new_session=True)"
    folder = notebooks(**{"01_a": "\n".join(["# %%", "import os, subprocess", late]), "02_slow": SLOW})
    process = run_apart(folder)
    said = process.communicate()[1]
    assert process.returncode == 130 and "Interrupted." in said and "Traceback" not in said, said


@pytest.mark.parametrize("adopted", [False, sys.platform == "linux"], ids=["by process 1", "by another"])
def test_a_kernel_ends_with_a_killed_command(notebooks, adopted):
    """Whether process 1 adopts the orphan or another process does, as in a desktop session."""
    process = run_apart(notebooks(**{"01_slow": SLOW}))
    kernel = kernel_of(process)
    if adopted:
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    process.kill()
    process.communicate()
    try:
        assert psutil.wait_procs([kernel], 20)[0], "it lives on"
    finally:
        if adopted:
            ctypes.CDLL(None).prctl(36, 0)


def test_each_notebook_has_a_clean_kernel_in_its_folder(notebooks, tmp_path, monkeypatch):
    """Whatever the user's own IPython does at start-up."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    profile = tmp_path / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "00.py").write_text("x = 1")
    lines = "import os, json, __main__", "assert not hasattr(json, 'x') and not hasattr(__main__, 'x')", "json.x = 1"
    lines += f"assert os.getcwd() == {str(tmp_path / 'notebooks')!r}", "print(os.getpid())"
    notebooks(**dict.fromkeys(("01_a", "02_b"), "\n".join(["# %%", *lines])))
    assert run() == 0
    report = tmp_path / "data" / "runs" / "smoke" / "report"
    executed = [nbformat.read(report / f"{name}.ipynb", as_version=4) for name in ("01_a", "02_b")]
    assert len({each.cells[-1].outputs[0].text for each in executed}) == 2
    assert all(10e6 < each.metadata["aircraft_sae"]["peak_memory_bytes"] for each in executed)
    assert all(0 < each.metadata["aircraft_sae"]["seconds"] for each in executed)


REFUSED = {
    "fly": "no notebook fly: there are 01",
    "--fast": "unrecognized arguments: --fast",
    "run 7 99 x": "no notebook 07, 0x, 99: there are 01",
    "--preset jet": "no preset 'jet': choose one of smoke, hangar",
    "--preset hangar --data-root x": "only fgvc, photos do",
    "--preset photos": "--data-root",
    "--preset photos --data-root /not/there": "/not/there holds no folders",
    "--preset photos --data-root . --in-place": "would put the photographs",
    "--network inception5h.pth --record": "are for the default networks, not for",
    "--network inception5h.pth": "for notebooks 09 and 10, not 01: say run 09 10",
}


@pytest.mark.parametrize(("words", "answer"), REFUSED.items())
def test_words_it_does_not_understand_end_with_2(notebooks, tmp_path, capsys, words, answer):
    notebooks(**{"01_a": "# %%\n1"})
    with pytest.raises(SystemExit) as ended:
        command.main(words.split())
    assert ended.value.code == 2 and answer in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_copies_of_notebooks_are_left_out(notebooks):
    folder = notebooks(**{"01_a": "# %%\n1", "02_b": "# %%\n2", "01_a-Copy1": "# %%\n3", "01_ab": "# %%\n4"})
    for name in ("02_b-Copy1", "02_b_old", "02_B (1)", "03_gone-Copy1", "notes"):
        (folder / f"{name}.ipynb").write_text("{")
    assert command.find(folder) == {"01": folder / "01_a.py", "02": folder / "02_b.py"}
    (folder / "01_a.ipynb").touch()
    assert command.find(folder)["01"] == folder / "01_a.ipynb"


def test_notebooks_are_run_by_number(notebooks, tmp_path):
    said = tmp_path / "said"
    notebooks(**{f"{number}_n": f"# %%\nopen({str(said)!r}, 'a').write('{number} ')"
                 for number in ("01", "06", "07", "10")})  # fmt: skip

    def executed(*words):
        said.write_text("")
        assert run(*words) == 0
        return said.read_text().split()

    assert executed("7") == ["07"] and executed("run", "07") == []
    assert executed() == ["01", "06"]
    assert executed("run", "10", "--again", "07") == ["07", "10"]
    report = tmp_path / "data" / "runs" / "smoke" / "report" / "index.html"
    assert 'href="01_n.html"' in report.read_text(), "what an earlier run executed still holds"
    assert executed("run", "--all") == []


def test_an_unwritable_folder_is_named_before_any_cell_runs(notebooks, tmp_path, monkeypatch, capsys):
    notebooks(**{"01_a": "# %%\n1"})
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run() == 1
    said = capsys.readouterr()
    assert f"{tmp_path} cannot be written to: make it writable" in said.err and "notebooks" not in said.out
    assert not (tmp_path / "data").exists()
