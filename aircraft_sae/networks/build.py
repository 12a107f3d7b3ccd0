"""Build any timm network from a config, and prepare its modules for training."""

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
from aircraft_sae.networks import inception  # noqa: F401 (registers inceptionv1 with timm)
from aircraft_sae.networks.weights import find_weights, load_weights, unreachable
from aircraft_sae.store import digest


def build(cfg: ClassifierConfig, n_classes: int) -> nn.Module:
    """A network with n_classes logits, deterministic given cfg.

    Raises: ValueError for an unknown arch or one that does not fit the weights, FileNotFoundError for missing weights.
    """
    known = [*timm.list_models(), *timm.list_pretrained()]
    if cfg.arch not in known and ("." in cfg.arch or not timm.is_model(cfg.arch)):  # timm's old names are not listed
        close = difflib.get_close_matches(cfg.arch, known, n=3, cutoff=0.3) or ["convnext_atto"]
        raise ValueError(f"timm has no arch {cfg.arch!r}: did you mean {', '.join(close)}?")
    options = {"ls_init_value": cfg.layer_scale} if cfg.weights is None and cfg.layer_scale is not None else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.seed)
        try:
            model = timm.create_model(cfg.arch, pretrained=cfg.weights == "timm", num_classes=n_classes, **options)
        except Exception as problem:  # downloads raise the errors of many libraries
            if cfg.weights == "timm":
                raise unreachable(f"timm's weights for {cfg.arch} cannot be downloaded ({problem})") from problem
            raise ValueError(f"timm cannot build arch {cfg.arch!r}: {problem}") from problem
        if cfg.weights is None and isinstance(model, ConvNeXt):
            draw_weights(model)
    if cfg.weights not in (None, "timm"):
        load_weights(model, find_weights(cfg.weights))
    return model.to(memory_format=torch.channels_last)


def draw_weights(model: nn.Module) -> None:
    """Redraw all weights below the head with variance 1 / (number of inputs).

    timm's standard deviation, 0.02, suits 1,000 inputs. In a small ConvNeXt it leaves the blocks' output near 0, and
    the loss at ln(n_classes) for 30,000 pictures or more. Source: LeCun et al. 1998, Efficient BackProp, eq. 16.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("head"):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def check_weights(cfg: ClassifierConfig) -> None:
    """Raise quickly what `build` or `freeze` would raise, without downloading from timm's hub."""
    if cfg.frozen_stages and cfg.weights is None:
        raise ValueError(f"frozen_stages={cfg.frozen_stages} would freeze random weights: set it to 0 or name weights")
    with torch.device("meta"):  # names and shapes only
        model = build(replace(cfg, weights=None) if cfg.weights == "timm" else cfg, 1)
    freeze(model, cfg.frozen_stages)


def weights_digest(cfg: ClassifierConfig) -> str:
    """What identifies the initial weights: a digest of their files, their name in timm's hub, or "none"."""
    if cfg.weights == "timm":
        return timm.get_pretrained_cfg(cfg.arch).hf_hub_id or cfg.arch
    if cfg.weights is None:
        return "none"
    path = find_weights(cfg.weights)
    return digest([file for file in (path, path.with_suffix(".json")) if file.is_file()])


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Exempt depthwise convolutions from autocast on a CPU: in bfloat16 their backward pass is 3-4 times slower."""

    def in_float32(forward: Callable, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.forward = partial(in_float32, module.forward)  # in forward, since timm's subclasses pad there


def freeze(model: nn.Module, n_stages: int) -> list[nn.Module]:
    """Freeze the stem and `n_stages` stages in timm's grouping, and return their modules; ValueError if too few."""
    if n_stages == 0:
        return []
    groups = group_modules(model, model.group_matcher(coarse=True)) if hasattr(model, "group_matcher") else {}
    if len(groups) < n_stages + 2:  # the last is the head
        what = f"frozen_stages={n_stages} needs a stem and that many stages"
        raise ValueError(f"{what}, which {type(model).__name__} does not have: set it to 0")
    parts = [model.get_submodule(name) for group in range(n_stages + 1) for name in groups[group]]
    for part in parts:
        part.requires_grad_(False)
    return parts
