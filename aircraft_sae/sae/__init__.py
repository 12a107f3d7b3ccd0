"""Sparse autoencoders: `model` encodes and decodes, `training` trains."""

from aircraft_sae.sae.model import Codes, SparseAutoencoder
from aircraft_sae.sae.training import train_sae, units
