"""Any CNN behind one interface: built, trained, evaluated, and observed or edited at any site."""

from aircraft_sae.networks.build import build, check_weights, weights_digest
from aircraft_sae.networks.network import BATCH, Edit, Network, Seen
from aircraft_sae.networks.readouts import PooledReadout
from aircraft_sae.networks.training import evaluate, load, predict, pretrained, train
