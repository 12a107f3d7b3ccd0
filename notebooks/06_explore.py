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
# The other notebooks ask about all features at once. Here you look at one feature after another, name what you see, and
# change a picture's features to watch how the classifier's answer changes. Numbers cannot replace looking; they tell
# you how far to trust what you see.
#
# **Reads** what the earlier notebooks made. **Writes** your labels to `data/runs/<preset>/labels.csv` at every change.
#
# **Runtime**: ten seconds. The widgets need a running kernel; without one, a gallery of this run stands in for the
# browser.

# %%
from IPython.display import Markdown, display

from aircraft_sae.study import Study
from aircraft_sae.view.browser import FeatureBrowser, InterventionBench
from aircraft_sae.view.report import answer, read_numbers

study = Study.open()

# %% [markdown]
# ## The browser
#
# On the left are the features, in the middle are pictures in which the chosen feature is active, and on the right are
# its measurements. Click a picture to put it on the browser's own bench. All heat maps of a feature share one scale.
# Labels are saved as you type. Press `?` for the keys.

# %%
browser = FeatureBrowser(study)
display(browser)

# %% [markdown]
# ## The bench
#
# The bench shows one picture, from the data set or your own. A slider multiplies a feature wherever it is active (1
# leaves it as it is, 0 suppresses it). Two controls are shown beside the result: random directions of the same length,
# and the reconstruction with no slider moved. The blur brush blurs the cells that you drag it over, with other cells as
# the control; with *sliders in chosen cells only*, the brush selects the cells in which the sliders act.

# %%
bench = InterventionBench(study)
display(bench)

# %% [markdown]
# ## Takeaways of the earlier notebooks
#
# Each sentence is built from the numbers that the notebooks recorded.

# %%
names = "01_train_classifier", "02_extract_activations", "03_train_sae", "04_inspect_features", "05_ablate_features"
numbers = read_numbers(study.folder / "results", names)
display(Markdown("\n".join(f"{i}. {line}" for i, line in enumerate(answer(numbers), 1))))

# %% [markdown]
# ## What this does not show
#
# What you see in a gallery is what you chose to look at. Notebook 05 asked whether features do what they seem to do,
# and did so for features that nobody chose by their looks.

# %% tags=["nbval-check-output"]
print("nothing went wrong in the widgets:", not browser.errors and not bench.errors)
