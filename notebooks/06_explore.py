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
# **Question.** What do you see?
#
# The other notebooks ask about all features at once. Here you look at one after the other, name what you see, and
# change a picture's features to watch the classifier's answer. Numbers cannot replace that look; they tell you how far
# to trust it.
#
# **Reads** what the notebooks before have made. **Writes** your labels to `data/runs/<preset>/labels.csv`, at each
# change, and the atlas to `data/runs/<preset>/atlas/`.
#
# **Runtime**: a minute the first time, a quarter of one after that. The widgets need a running kernel; without one, a
# gallery of this run stands in for the browser.

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
# On the left are the features, in the middle pictures in which the chosen one is active, on the right what was
# measured. Click a picture to put it on the bench below. All heat maps of a feature share one scale. Labels are saved
# while you type. Press `?` for the keys.

# %%
browser = FeatureBrowser(study)
display(browser)

# %% [markdown]
# ## The bench
#
# One picture, from the data set or your own. A slider multiplies a feature wherever it is active (1 leaves it, 0
# suppresses it). Two controls stand beside the result: random directions of the same length, and the reconstruction
# alone. The blur brush blurs the cells that you drag over; with *sliders in chosen cells only*, the brush chooses where
# sliders act. Below, a linear head names the part that each cell shows, before and after (the second task of notebook
# 08). *Minimal flip* finds the fewest features whose suppression changes the prediction, and checks them with a forward
# pass.

# %%
bench = InterventionBench(study)
display(bench)

# %% [markdown]
# ## The atlas
#
# All features, and the bench for some pictures, as a folder of static pages that needs no kernel and no internet. Open
# its `index.html`, or send the folder to a colleague. It contains your labels as they were when it was written; *Export
# the atlas* in the browser's header writes it again.

# %%
atlas = export_atlas(study)
size = sum(path.stat().st_size for path in atlas.parent.rglob("*") if path.is_file())
print(f"{atlas.relative_to(study.data_dir).as_posix()}: {size / 1e6:.1f} MB")

# %% [markdown]
# ## Takeaways of the six notebooks
#
# Each sentence is read from the numbers that the notebooks wrote down.

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
