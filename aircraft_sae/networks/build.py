"""Networks that timm knows, built from a config; what training does to their modules."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import timm
import torch
from timm.models import group_modules
from timm.models.convnext import ConvNeXt
from torch import nn

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import inception  # noqa: F401 (timm learns of it)
from aircraft_sae.networks.weights import find_weights, load_weights, unreachable
from aircraft_sae.store import digest


def build(cfg: ClassifierConfig, n_classes: int) -> nn.Module:
    """A network with n_classes logits, the same for the same cfg.

    Raises: ValueError for an arch that is unknown or does not fit the weights, FileNotFoundError for absent weights.
    """
    known = [*timm.list_models(), *timm.list_pretrained()]
    if cfg.arch not in known and ("." in cfg.arch or not timm.is_model(cfg.arch)):  # its old names are not listed
        close = difflib.get_close_matches(cfg.arch, known, n=3, cutoff=0.3) or ["convnext_atto"]
        raise ValueError(f"timm has no arch {cfg.arch!r}: did you mean {', '.join(close)}?")
    options = {"ls_init_value": cfg.layer_scale} if cfg.weights is None and cfg.layer_scale is not None else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.seed)
        try:
            model = timm.create_model(cfg.arch, pretrained=cfg.weights == "timm", num_classes=n_classes, **options)
        except Exception as problem:  # the hub's client raises errors of its own and of its transports
            if cfg.weights != "timm":
                raise ValueError(f"timm cannot build arch {cfg.arch!r}: {problem}") from problem
            raise unreachable(f"timm's weights for {cfg.arch} cannot be had ({problem})") from problem
        if cfg.weights is None and isinstance(model, ConvNeXt):
            let_signal_through(model)
    if cfg.weights not in (None, "timm"):
        load_weights(model, find_weights(cfg.weights))
    return model.to(memory_format=torch.channels_last)


def check_weights(cfg: ClassifierConfig) -> None:
    """Refuse, in little time, what `build` or `freeze` would refuse; timm's hub is not asked."""
    if cfg.frozen_stages and cfg.weights is None:
        raise ValueError(f"frozen_stages={cfg.frozen_stages} would keep random weights: set it to 0 or name weights")
    with torch.device("meta"):  # names and shapes alone
        model = build(replace(cfg, weights=None) if cfg.weights == "timm" else cfg, 1)
    freeze(model, cfg.frozen_stages)


def weights_digest(cfg: ClassifierConfig) -> str:
    """What the initial weights are known by: their content, or for timm's hub their name there; "none" from scratch."""
    if cfg.weights == "timm":
        return timm.get_pretrained_cfg(cfg.arch).hf_hub_id or cfg.arch
    if cfg.weights is None:
        return "none"
    path = find_weights(cfg.weights)
    return digest([file for file in (path, path.with_suffix(".json")) if file.is_file()])


def let_signal_through(model: nn.Module) -> None:
    """Draw all weights below the head anew, their variance one over the number of inputs.

    timm's 0.02, meant for 1,000 inputs, leaves the blocks of a small ConvNeXt at almost 0: its loss then stays at
    ln(number of classes) for the first 30,000 pictures and more. Source: LeCun et al. 1998, Efficient BackProp, eq. 16.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("head"):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """For training on a CPU, where oneDNN takes 3 to 4 times as long for their weights' gradient in bfloat16."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.forward = partial(_in_float32, module.forward)  # timm's own kinds pad in theirs


def _in_float32(forward: Callable, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(x.float())


def freeze(model: nn.Module, n_stages: int) -> list[nn.Module]:
    """Freeze the stem and `n_stages` stages, as timm groups them, and return their modules; ValueError for too few."""
    if n_stages == 0:
        return []
    groups = group_modules(model, model.group_matcher(coarse=True)) if hasattr(model, "group_matcher") else {}
    if len(groups) < n_stages + 2:  # the last is the head
        what = f"frozen_stages={n_stages} is for networks with a stem and so many stages"
        raise ValueError(f"{what}, {type(model).__name__} has none: set it to 0")
    parts = [model.get_submodule(name) for group in range(n_stages + 1) for name in groups[group]]
    for part in parts:
        part.requires_grad_(False)
    return parts
