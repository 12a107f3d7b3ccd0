"""Networks that timm knows, built from a config; what training does to their modules."""

from __future__ import annotations

import timm
import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from aircraft_sae.config import ClassifierConfig
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
    for module in [model.stem, *model.stages][: n_stages + 1 if n_stages else 0]:
        module.requires_grad_(False)
