"""ConvNeXt classifiers from timm: built, trained, evaluated, and open at named sites.

`network` builds a ConvNeXt and names its parts, `weights` reads and writes its weights, `training` is the resumable
loop, `inference` predicts and evaluates.
"""

from aircraft_sae.networks.inference import Classifier, Evaluation, evaluate, export_weights
from aircraft_sae.networks.network import build, head, site
from aircraft_sae.networks.training import train
from aircraft_sae.networks.weights import check_weights, weights_digest

__all__ = [
    "Classifier", "Evaluation", "build", "check_weights", "evaluate", "export_weights", "head", "site", "train",
    "weights_digest",
]  # fmt: skip
