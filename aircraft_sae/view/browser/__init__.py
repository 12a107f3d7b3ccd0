"""The feature browser and the intervention bench: widgets over plain functions that need no front end."""

from aircraft_sae.view.browser.bench import Bench
from aircraft_sae.view.browser.catalogue import Catalogue, gallery_figure, patches_figure
from aircraft_sae.view.browser.widgets import FeatureBrowser, InterventionBench, Labels
