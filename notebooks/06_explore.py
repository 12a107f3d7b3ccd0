# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Explore
#
# **Question.** What do you see? The other notebooks ask about all features at once. Here you look at one after the
# other, by feature, by picture or by class, name what you see, and change a picture's features to see what the
# classifier makes of it. Press `?` inside the browser for its keys.
#
# **Reads** what the notebooks before it have made. **Writes** your labels to `data/runs/<preset>/labels.csv`, at each
# change, and the atlas to `data/runs/<preset>/atlas/`.
#
# **Runtime**: a minute the first time, a quarter of one after that. The widgets need a running kernel; where there is
# none, a gallery of this run stands for the browser.

# %%
from IPython.display import Markdown, display

from aircraft_sae.study import Study
from aircraft_sae.view.atlas import export_atlas
from aircraft_sae.view.browser import FeatureBrowser, InterventionBench
from aircraft_sae.view.report import answer, read_numbers

study = Study.open()

# %% [markdown]
# ## The browser
#
# On the left the features, in the middle pictures in which the chosen one is active, on the right what was measured of
# it, at the bottom the bench: click a picture to put it there. All heat maps of a feature have one scale. A label is
# saved while you type.

# %%
browser = FeatureBrowser(study)
display(browser)

# %% [markdown]
# ## The bench
#
# The bench alone, for one picture: of the data set, or your own. A slider multiplies a feature wherever it is active
# (1: as it is, 0: suppressed). Beside what comes out stands what as much of random directions does, and the
# reconstruction alone. The blur brush blurs the cells that you click or drag over; with *sliders in chosen cells only*,
# the brush says where sliders act. Below, a linear head names the part that each cell shows, before and after: the
# second task of notebook 08. *Minimal flip* looks for the fewest features whose suppression changes the prediction, and
# checks it with a forward pass of the whole network.

# %%
bench = InterventionBench(study)
display(bench)

# %% [markdown]
# ## The atlas
#
# All features, and the bench for some pictures, as a folder of static pages. Open its `index.html`, or send the folder:
# it needs no kernel and no network. It has your labels as they were when it was written. *Export the atlas* in the
# browser's header writes it anew and shows how far it is; where labels alone have changed, that takes no time.

# %%
atlas = export_atlas(study)
size = sum(path.stat().st_size for path in atlas.parent.rglob("*") if path.is_file())
print(f"{atlas.relative_to(study.data_dir).as_posix()}: {size / 1e6:.1f} MB")

# %% [markdown]
# ## Takeaways of the six notebooks
#
# Read from the numbers that they wrote down.

# %%
names = "01_train_classifier", "02_extract_activations", "03_train_sae", "04_inspect_features", "05_ablate_features"
numbers = read_numbers(study.folder / "results", names)
display(Markdown("\n".join(f"{i}. {line}" for i, line in enumerate(answer(numbers), 1))))

# %% [markdown]
# ## What this does not show
#
# What you see in a gallery is what you chose to look at. Whether a feature does what it seems to was asked in notebook
# 05, of features that nobody chose by their looks.

# %% tags=["nbval-check-output"]
print("nothing went wrong in the widgets:", not browser.errors and not bench.errors)
