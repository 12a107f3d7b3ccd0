"""A timm ConvNeXt: built from a config, with its sites and its head by name."""

from __future__ import annotations

import copy

import timm
import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from aircraft_sae.config import SITES, ClassifierConfig
from aircraft_sae.networks.weights import check_arch, load_weights, unreachable


def build(cfg: ClassifierConfig, n_classes: int) -> ConvNeXt:
    """A ConvNeXt with `n_classes` logits in channels-last memory; the same cfg (and seed) gives the same weights.

    Weights come from where `cfg.weights` says; a head for another number of classes starts anew.
    Raises: ValueError for an arch that is no timm ConvNeXt, or weights that do not fit it; FileNotFoundError for
    weights that are not there or cannot be fetched.
    """
    check_arch(cfg.arch)
    options = {}
    if cfg.weights is None and cfg.layer_scale is not None:
        options["ls_init_value"] = cfg.layer_scale
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.seed)
        try:
            model = timm.create_model(cfg.arch, pretrained=cfg.weights == "timm", num_classes=n_classes, **options)
        except Exception as problem:  # the hub's client raises errors of its own and of its transports
            if cfg.weights != "timm":
                raise ValueError(f"timm cannot build arch {cfg.arch!r}: {problem}") from problem
            raise unreachable(f"timm's weights for {cfg.arch} cannot be had ({problem})") from problem
        if cfg.weights is None:
            let_signal_through(model)
    if cfg.weights not in (None, "timm"):
        load_weights(model, cfg.weights, cfg.arch)
    return model.to(memory_format=torch.channels_last)


def let_signal_through(model: ConvNeXt) -> None:
    """Draw all weights below the head anew, their variance one over the number of inputs.

    timm's 0.02, meant for 1,000 inputs, leaves the blocks of a small ConvNeXt at almost 0: its loss then stays at
    ln(number of classes) for the first 30,000 pictures and more. Source: LeCun et al. 1998, Efficient BackProp, eq. 16.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("head"):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def site(model: ConvNeXt, name: str) -> nn.Module:
    """The module whose output is the site: "stage4" gives (n, d_in, rows, columns) just before the head."""
    if name not in SITES:
        raise ValueError(f"no site {name!r}: choose one of {', '.join(SITES)}")
    return model.stem if name == "stem" else model.stages[int(name[-1]) - 1]


def head(model: ConvNeXt, acts: torch.Tensor) -> torch.Tensor:
    """Logits (n, n_classes) from what "stage4" gave: acts (n, d_in, rows, columns), or their mean over cells (n, d_in).

    It is mean over cells -> LayerNorm -> (hidden layer) -> linear, so that only the mean matters.
    Raises: ValueError for other shapes, and for a mean where the model norms each cell before it pools.
    """
    if acts.ndim not in (2, 4) or acts.shape[1] != model.num_features:
        d_in = model.num_features
        raise ValueError(f"acts must be (n, {d_in}) or (n, {d_in}, rows, columns), got {tuple(acts.shape)}")
    if acts.ndim == 2:
        if not isinstance(model.norm_pre, nn.Identity):
            raise ValueError("this model norms each cell before it pools: its head needs acts (n, d_in, rows, columns)")
        acts = acts[:, :, None, None]  # pooling over one cell changes nothing
    return model.forward_head(model.norm_pre(acts))


def logits_from(model: ConvNeXt, name: str, acts: torch.Tensor) -> torch.Tensor:
    """Logits (n, n_classes) from what a site gave, acts (n, d_in, rows, columns): the part of the network after it."""
    site(model, name)  # refuses unknown names
    for stage in model.stages[SITES.index(name) :]:
        acts = stage(acts)
    return head(model, acts)


def permuted(model: ConvNeXt, seed: int = 0) -> ConvNeXt:
    """A copy in which the entries of every weight tensor have changed places: same values, nothing learned.

    Source: Heap et al. 2025, arXiv 2501.17727; permuting keeps ConvNeXt's layer scales at their trained size.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view(weight.shape))
    return model


class Float32Conv(nn.Conv2d):
    """A convolution that autocast leaves in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def keep_depthwise_in_float32(model: ConvNeXt) -> None:
    """For training on a CPU, where oneDNN takes 3 to 4 times as long for their weights' gradient in bfloat16."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.__class__ = Float32Conv


def freeze(model: ConvNeXt, n_stages: int) -> None:
    """Take the stem and `n_stages` stages out of training; none, and not the stem, where n_stages is 0.

    Without parameters to learn below them they are not recorded for the backward pass and cost a forward pass only.
    """
    for name in SITES[: n_stages + 1 if n_stages else 0]:
        site(model, name).requires_grad_(False)
