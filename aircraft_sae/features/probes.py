"""Probes: what one direction, fitted to labels, knows of a part.

acts: (n, rows, columns, d_in) of the pictures of `regions`, in their order.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import precision_recall_curve

from aircraft_sae.activations import Activations
from aircraft_sae.features.reconstruction import readers
from aircraft_sae.features.regions import Regions, ap_of
from aircraft_sae.sae import SparseAutoencoder


def fit_probes(acts: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a cell is said to show part i where acts . direction + bias >= 0.

    Fitted on half A: ridge regression of the labels on standardised channels, with 0.001 times the cells as penalty;
    the bias has the best F1 there. No direction where all or no cells show the part: zeros.
    """
    x = np.float64(acts[~regions.in_b]).reshape(-1, acts.shape[-1])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, own = (x - mean) / spread, regions.labels[~regions.in_b].reshape(len(x), -1)
    weights = Ridge(1e-3 * len(x)).fit(x, own).coef_
    bias, scores = np.zeros(len(weights)), x @ weights.T
    for i in np.flatnonzero(own.any(0)):
        precision, recall, thresholds = precision_recall_curve(own[:, i], scores[:, i])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        bias[i] = -thresholds[f1[:-1].argmax()]
    weights = np.where((own.any(0) & ~own.all(0))[:, None], weights, 0) / spread
    return weights, bias - weights @ mean


def probe_dictionary(sae: SparseAutoencoder, acts: Activations, regions: Regions) -> SparseAutoencoder:
    """The probes as features 0, 1, … of a dictionary that reads what `sae` reads of its site's acts."""
    return readers(sae, *map(torch.from_numpy, fit_probes(acts.acts[acts.rows("test")], regions)))


def probe_scores(acts: np.ndarray, regions: Regions) -> pd.Series:
    """Average precision on half B, by part, of one direction of the activations that is fitted on half A.

    Trained with labels, as no feature was: a ceiling.
    """
    directions, biases = fit_probes(acts, regions)
    scores, labels = np.float64(acts[regions.in_b]) @ directions.T + biases, regions.labels[regions.in_b]
    found = [ap_of(scores[..., i], labels[..., i])[0] for i in range(len(regions.names))]
    return pd.Series(found, regions.names).where(directions.any(1))
