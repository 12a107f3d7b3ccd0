"""The sparse autoencoder: sparse codes, encoding, decoding, and files that SAELens 6 opens.

    pre_acts      = (x - b_dec) W_enc + b_enc, for acts x (n, d_in)
    feature_acts  = pre_acts where selected and positive, 0 elsewhere
    recon         = feature_acts W_dec + b_dec

"topk" selects each cell's k largest (Gao et al. 2024, arXiv 2406.04093, equation 3). "batchtopk" selects the n k
largest of a training batch of n cells and, after training, all above one threshold (Bussmann et al. 2024, arXiv
2412.06410, equation 4). In a tied autoencoder, W_enc is the transpose of W_dec.
"""

from dataclasses import asdict, dataclass
from math import gcd
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import embedding_bag, linear, normalize

from aircraft_sae.config import SAEConfig, from_dict
from aircraft_sae.store import digest, read_json, write_json, write_whole

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
BLOCK = 1024  # cells encoded at a time, whose pre-activations (25 MB at d_sae 6,144) stay in the cache


@dataclass
class Codes:
    """Sparse feature activations of n cells; cell i has entries offsets[i] to offsets[i + 1].

    values: (entries,), at least 0; features: (entries,) int64 ids; offsets: (n + 1,) int64.
    """

    values: torch.Tensor
    features: torch.Tensor
    offsets: torch.Tensor
    d_sae: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def cells(self) -> torch.Tensor:
        """(entries,) each entry's cell."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.values))

    def decode(self, table: torch.Tensor) -> torch.Tensor:
        """(n, d) sums over each cell's entries of value x table[feature]; table: (d_sae, d)."""
        return embedding_bag(self.features, table, self.offsets[:-1], mode="sum", per_sample_weights=self.values)

    def dot(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(entries,) table[feature] . rows[cell] at the active entries only; table: (d_sae, d), rows: (n, d)."""
        # this is the gradient of `decode` with respect to the values; mode 0 is "sum"
        gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return gradient(rows, table, self.features, self.offsets[:-1], self.cells, 0)

    def where(self, keep: torch.Tensor) -> "Codes":
        """The entries where keep (entries,) is true."""
        kept = keep.nonzero()[:, 0]
        offsets = torch.searchsorted(kept, self.offsets)
        return Codes(self.values.take(kept), self.features.take(kept), offsets, self.d_sae)

    def by_feature(self) -> tuple["Codes", torch.Tensor]:
        """(the codes transposed, with features as rows; the order of the entries)."""
        features, order = self.features.int().sort(stable=True)  # a radix sort: 4-byte keys are faster than 8
        offsets = torch.searchsorted(features, torch.arange(self.d_sae + 1, device=features.device).int())
        return Codes(self.values.take(order), self.cells.take(order), offsets, len(self)), order

    def dense(self) -> torch.Tensor:
        """(n, d_sae), for small n: 490,000 cells of 6,144 features would take 12 GB."""
        return self.values.new_zeros(len(self), self.d_sae).index_put_((self.cells, self.features), self.values)


def largest(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, places) of each row's k largest, faster than topk: they lie in the k groups with the largest maxima."""
    n, m = rows.shape
    width = gcd(m, 4)  # of a group; recursion finds the best groups
    if m <= 2 * k * width or width == 1:
        return rows.topk(k, sorted=False)
    groups = largest(rows.view(n, width, m // width).amax(1), k)[1]
    places = (groups[:, None] + torch.arange(0, m, m // width, device=rows.device)[:, None]).flatten(1)
    values, best = rows.gather(1, places).topk(k, sorted=False)
    return values, places.gather(1, best)


class SparseAutoencoder(nn.Module):
    """W_enc (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_in), b_dec (d_in,), in the units of the acts.

    W_enc is a view of W_enc_rows (d_sae, d_in), so that sparse gradients add whole rows.
    threshold: the smallest pre-activation that "batchtopk" selects after training.
    """

    def __init__(self, cfg: SAEConfig, d_in: int):
        super().__init__()
        self.cfg, self.d_in, self.d_sae = cfg, d_in, cfg.expansion * d_in
        if cfg.k > self.d_sae:
            raise ValueError(f"k={cfg.k} exceeds the {self.d_sae} features ({cfg.expansion} x {d_in}): lower sae.k")
        generator = torch.Generator().manual_seed(cfg.seed)
        directions = normalize(torch.randn(self.d_sae, d_in, generator=generator))
        self.W_dec = nn.Parameter(directions)
        self.W_enc_rows = self.W_dec if cfg.tied else nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def fingerprint(self) -> str:
        """A digest of config and weights."""
        return digest([self.cfg, self.d_in, self.state_dict()])

    @property
    def W_enc(self) -> torch.Tensor:
        return self.W_enc_rows.t()

    @torch.no_grad()
    def encode(self, acts: torch.Tensor) -> Codes:
        """Codes of acts (n, d_in); "batchtopk" uses its threshold. ValueError for another type or shape."""
        if not isinstance(acts, torch.Tensor) or acts.ndim != 2 or acts.shape[1] != self.d_in:
            got = f"{type(acts).__name__} {getattr(acts, 'shape', '')}"
            remedy = "flatten rows and columns, and use torch.from_numpy on arrays"
            raise ValueError(f"acts must be a tensor (n, {self.d_in}), got {got}: {remedy}")
        return self.select(acts - self.b_dec, max(0.0, self.threshold.item()))

    @torch.no_grad()
    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, Codes]:
        """(recon, codes) of acts (n, d_in); ValueError as in `encode`."""
        codes = self.encode(acts)
        return codes.decode(self.W_dec).add_(self.b_dec), codes

    def select(self, centred: torch.Tensor, least: float, rough: bool = False) -> Codes:
        """Codes of acts - b_dec: each cell's k largest ("topk"), or all above `least`.

        rough: candidates are found in bfloat16, with a margin, and their values are computed in float32.
        """
        k, topk, kind = self.cfg.k, self.cfg.variant == "topk", torch.bfloat16 if rough else torch.float32
        wanted, bar = (min(self.d_sae, k + max(8, k // 4)), least - 0.05 - least / 64) if rough else (k, least)
        weights, found = (self.W_enc_rows.to(kind), self.b_enc.to(kind)), []
        for block in centred.to(kind).split(BLOCK):
            pre_acts = linear(block, *weights)
            if topk:
                values, features = largest(pre_acts, wanted)
                counts = torch.full((len(block),), wanted, device=block.device)
            else:
                places = (pre_acts > bar).flatten().nonzero()[:, 0]  # twice as fast as pre_acts[mask]
                values, features = pre_acts.take(places), places % self.d_sae
                counts = torch.bincount(places // self.d_sae, minlength=len(block))
            found.append((values.flatten(), features.flatten(), counts))
        values, features, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
        codes = Codes(values, features, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.d_sae)
        if rough:
            codes.values = codes.dot(self.W_enc_rows, centred) + self.b_enc[features]
        if rough and topk:
            values, best = codes.values.view(-1, wanted).topk(k, sorted=False)
            features = features.view(-1, wanted).gather(1, best)
            offsets = torch.arange(len(counts) + 1, device=features.device) * k
            codes = Codes(values.flatten(), features.flatten(), offsets, self.d_sae)
        elif rough:
            codes = codes.where(codes.values > least)
        codes.values.relu_()
        return codes

    @torch.no_grad()
    def fold_scaling(self, mean: torch.Tensor, scale: torch.Tensor | float) -> "SparseAutoencoder":
        """Fold the scaling of the training cells, x -> (x - mean) scale, into the weights.

        scale: one number, which divides feature activations too; or (d_in,), which changes the lengths of decoder rows.
        """
        self.b_dec.div_(scale).add_(mean)
        if isinstance(scale, float):
            self.b_enc.div_(scale)
            self.threshold.div_(scale)
        else:
            self.W_enc_rows.mul_(scale)
            self.W_dec.div_(scale)
        return self

    def save(self, folder: str | Path) -> None:
        """Write sae_weights.safetensors and cfg.json, which `sae_lens.SAE.load_from_disk` opens too."""
        folder, topk = Path(folder), self.cfg.variant == "topk"
        facts = {
            "architecture": "topk" if topk else "jumprelu", "d_in": self.d_in, "d_sae": self.d_sae,
            "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
            "reshape_activations": "none", "metadata": {},
        }  # fmt: skip
        state = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        if topk:  # SAELens may scale by the lengths of decoder rows only if all are 1, else it picks other features
            unit = bool((self.W_dec.norm(dim=1) - 1).abs().max() <= 1e-5)
            facts |= {"k": self.cfg.k, "rescale_acts_by_decoder_norm": unit}
        else:
            state["threshold"] = self.threshold.clamp(min=0).expand(self.d_sae)
        write_json(folder / CONFIG, facts | {"aircraft_sae": asdict(self.cfg)})
        state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        write_whole(folder / WEIGHTS, lambda temporary: safetensors.torch.save_file(state, temporary))

    @classmethod
    def load(cls, folder: str | Path) -> "SparseAutoencoder":
        """Load what `save` wrote; FileNotFoundError if nothing is there, ValueError for damaged or foreign files."""
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"{folder / WEIGHTS} is not there: train an autoencoder into it first")
        try:
            facts, state = read_json(folder / CONFIG), safetensors.torch.load_file(folder / WEIGHTS)
            cfg = from_dict(SAEConfig, facts["aircraft_sae"])
            state["W_enc_rows"] = state.pop("W_enc").t().contiguous()
            state["threshold"] = state["threshold"][0] if cfg.variant == "batchtopk" else torch.zeros(())
            with torch.device("meta"):  # allocates nothing, however large a network the config asks for
                sae = cls(cfg, facts["d_in"])
            sae.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        except Exception as problem:  # every library raises errors of its own
            what = f"{folder} holds a damaged or foreign autoencoder ({type(problem).__name__}: {problem})"
            raise ValueError(f"{what}: train one into it again, or bring {CONFIG} and {WEIGHTS} of one") from problem
        if cfg.tied:
            sae.W_enc_rows = sae.W_dec
        return sae
