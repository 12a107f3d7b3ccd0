"""Any CNN behind one interface: look at its sites, change what passes there, go on from stored activations."""

import copy
import difflib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from aircraft_sae.devices import has_bfloat16, side_by_side
from aircraft_sae.networks.readouts import PooledReadout, find_readout, same
from aircraft_sae.pictures import test_transform
from aircraft_sae.store import digest

BATCH = 64 if torch.cuda.is_available() else 16
"""Pictures in a forward pass: on a CPU so few that what a layer makes is still in its caches, a quarter faster."""
Edit = Callable[[torch.Tensor], torch.Tensor]
_HOOKING = threading.Lock()
"""torch counts hooks without one: two threads could get the same number, and one of them lose its hook."""


@dataclass
class Seen:
    """What a forward pass showed. acts: {site: (n, rows, columns, d)}; logits: (n, classes). Float32, on the CPU."""

    acts: dict[str, torch.Tensor]
    logits: torch.Tensor


@dataclass(eq=False)
class Network:
    """A CNN in evaluation mode, and what it takes to use it.

    classes: names in the order of the logits; size, mean, std: pictures are squashed to (size, size) and normalised;
    level: of the taxonomy that the classes are of; mixed_precision: bfloat16 where `mixed` is asked for and the
    hardware has it; history: one row an epoch; predictions: `predict` on the test split.
    A site is a path of a module that gives maps, as in "stages.2.blocks.1"; "stem" and "stage1", … where the model has
    them; and a channel group of either, by range or by the branch that is concatenated there: "mixed4c:64-128",
    "inception4c:branch2".
    """

    model: nn.Module
    classes: list[str]
    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    name: str = "trained"
    level: str | None = None
    mixed_precision: bool = True
    history: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None

    def __post_init__(self):
        self.model.eval()
        self.shape, self.readout = cache(self.shape), cache(self.readout)  # which go with this network

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Known by content: weights, kind of model, preprocessing, classes; not by name or place."""
        kind = type(self.model).__name__, self.size, self.mean, self.std, self.classes, self.level
        return digest([self.model.state_dict(), kind, self.mixed_precision])

    def as_input(self, picture: Image.Image) -> torch.Tensor:
        """A picture as the network takes it: (3, size, size), normalised."""
        transform = test_transform(self.size, self.mean, self.std)
        return transform.normalise(transform(picture)[None])[0]

    def as_picture(self, x: torch.Tensor) -> np.ndarray:
        """(size, size, 3) uint8 from a normalised picture (3, size, size)."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (255 * (x * std + mean)).clamp(0, 255).byte().permute(1, 2, 0).numpy()

    def see(
        self, x: torch.Tensor | None, sites: Sequence[str] = (), edits: Mapping[str, Edit] | None = None, *,
        given: Mapping[str, torch.Tensor] | None = None, mixed: bool = False,
    ) -> Seen:  # fmt: skip
        """Look at a batch x (n, 3, size, size), and change what passes some sites.

        edits: {site: f}, f from acts (n, rows, columns, d) to as many; what is seen at a site is seen after its edit.
        given: {site: acts}, of one site, to go on from: x may then be None where the network `can_start` there.
        Gradients are recorded where the caller records them.
        Raises: ValueError for a site that is not there, an edit that changes a shape, no x where one is needed.
        """
        with _Hooks(self, sites, edits or {}, given or {}) as hooks:
            return hooks.see(x, mixed)

    def stream(
        self, batches: Iterable[torch.Tensor], sites: Sequence[str] = (), mixed: bool = False, logits: bool = True
    ) -> Iterator[Seen]:
        """`see` of each batch, in order and without gradients; on a CPU several at once.

        logits: without them ((n, 0) then) a pass ends at the last of the sites.
        """
        with _Hooks(self, sites, {}, {}) as hooks:
            hooks.whole = logits
            yield from side_by_side(torch.inference_mode()(partial(hooks.see, mixed=mixed)), batches)

    def shape(self, site: str) -> tuple[int, int, int]:
        """(rows, columns, d) of a site's acts."""
        with torch.inference_mode():
            return tuple(self.see(torch.zeros(1, 3, self.size, self.size), [site]).acts[site].shape[1:])

    def check_site(self, site: str) -> None:
        """ValueError for a site that this network does not have; it names those that are close."""
        path, _, group = site.partition(":")
        modules = {name: module for name, module in self.model.named_modules() if name}
        names = [*(f"stage{i + 1}" for i in range(len(getattr(self.model, "stages", [])))), *modules]
        if (module := modules.get(self._path(path))) is not None:
            children = dict(module.named_children())
            if not group or group in children or _range(group):
                return
            names = [f"{path}:{name}" for name in children]
        close = difflib.get_close_matches(site, names, n=5, cutoff=0.3) or names[:5]
        raise ValueError(f"no site {site!r} in {type(self.model).__name__}: did you mean {', '.join(close)}?")

    def can_start(self, site: str) -> bool:
        """Whether `see` can go on from stored acts of this site without a picture."""
        return self._step(site) is not None

    def readout(self, site: str) -> PooledReadout | None:
        """Logits from the mean over a site's cells in closed form; None where they are no such function of it."""
        with torch.inference_mode():
            return find_readout(self, site)

    def permuted(self, seed: int = 0) -> "Network":
        """The same network with permuted weights: same values in every tensor, nothing learned.

        Source: Heap et al. 2025, arXiv 2501.17727; permuting keeps layer scales at their trained size.
        """
        model, generator = copy.deepcopy(self.model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
        return replace(self, model=model, name="permuted", history=None, predictions=None)

    def _path(self, site: str) -> str:
        """A module's path from a site's name, less its channel group."""
        path = site.partition(":")[0]
        alias = re.fullmatch(r"stage(\d+)", path)
        return f"stages.{int(alias[1]) - 1}" if alias and hasattr(self.model, "stages") else path

    def channels(self, site: str) -> slice:
        """The channels of a site in its module's output; of a branch, by its place among the module's children."""
        path, _, group = site.partition(":")
        if not group:
            return slice(None)
        if bounds := _range(group):
            return slice(*bounds)
        path = self._path(path)
        names = [name for name, _ in self.model.get_submodule(path).named_children()]
        widths = []
        with suppress(KeyError, ValueError):  # of a child that is not called, or gives no maps
            widths = [self.shape(f"{path}.{name}")[2] for name in names]
        if sum(widths) != self.shape(path)[2]:
            raise ValueError(f"{path} does not concatenate its branches {', '.join(names)}: name channels, {path}:0-8")
        start = sum(widths[: names.index(group)])
        return slice(start, start + widths[names.index(group)])

    @cached_property
    def _steps(self) -> list[tuple[set[str], nn.Module]]:
        """(paths whose output it is, module) of each step, where the network is a plain sequence; else itself alone."""
        x = torch.rand(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return _sequence(self.model, "", x.to(self.device))[0]

    def _step(self, site: str) -> int | None:
        path = self._path(site)
        return next((i for i, (names, _) in enumerate(self._steps) if path in names and ":" not in site), None)


class _Enough(Exception):
    """Ends a forward pass of which all that is wanted has been seen."""


class _Hooks:
    """Records and edits what passes some sites in forward passes made through it; those of others pass untouched."""

    def __init__(self, network: Network, sites: Sequence[str], edits: Mapping[str, Edit], given: Mapping) -> None:
        for site in [*sites, *edits, *given]:
            network.check_site(site)
        self.network, self.sites, self.edits, self.given = network, sites, dict(edits), given
        self.here, self.handles, self.start, self.whole = threading.local(), [], None, True
        if given:
            ((site, acts),) = given.items()
            self.start = network._step(site)
            if self.start is None:
                edit = self.edits.get(site, lambda acts: acts)
                self.edits[site] = lambda _: edit(acts)

    def __enter__(self) -> "_Hooks":
        network = self.network
        channels = {site: network.channels(site) for site in dict.fromkeys([*self.edits, *self.sites])}
        with _HOOKING:
            for site, own in channels.items():
                module = network.model.get_submodule(path := network._path(site))
                if self.start is not None and (step := network._step(path)) is not None:
                    if step <= self.start:
                        continue
                    module = network._steps[step][1]  # of a sequence, only the steps are called
                self.handles.append(module.register_forward_hook(partial(self._pass, site, own)))
        return self

    def __exit__(self, *_problem) -> None:
        with _HOOKING:
            for handle in self.handles:
                handle.remove()

    def see(self, x: torch.Tensor | None, mixed: bool = False) -> Seen:
        """One forward pass."""
        network, where = self.network, self.network.device
        if x is None and self.start is None:
            raise ValueError("this network cannot start at such a site: give the pictures x too")
        self.here.acts = {}
        try:
            with torch.autocast(where.type, torch.bfloat16, mixed and network.mixed_precision and has_bfloat16(where)):
                logits = network.model(x.to(where, non_blocking=True)) if self.start is None else self._go_on()
            return Seen(self.here.acts, logits.float().cpu())
        except _Enough:
            return Seen(self.here.acts, torch.empty(len(x), 0))
        finally:
            del self.here.acts

    def _go_on(self) -> torch.Tensor:
        ((site, acts),) = self.given.items()
        out = acts.to(self.network.device).permute(0, 3, 1, 2)
        if site in self.edits or site in self.sites:
            changed = self._pass(site, slice(None), None, None, out)
            out = out if changed is None else changed
        for _, module in self.network._steps[self.start + 1 :]:
            out = module(out)
        return out

    def _pass(self, site: str, channels: slice, _module, _given, out: torch.Tensor) -> torch.Tensor | None:
        if not hasattr(self.here, "acts"):
            return None
        if not isinstance(out, torch.Tensor) or out.ndim != 4:
            raise ValueError(f"site {site!r} gives no maps (n, channels, rows, columns): choose a convolutional one")
        acts = out[:, channels].permute(0, 2, 3, 1).float().cpu().clone()  # what follows may work in place
        changed = self.edits[site](acts) if site in self.edits else acts
        if changed.shape != acts.shape:
            raise ValueError(f"the edit of {site!r} gives {tuple(changed.shape)} for acts {tuple(acts.shape)}")
        if site in self.sites:
            self.here.acts[site] = changed
            if not self.whole and len(self.here.acts) == len(self.sites):
                raise _Enough
        if site not in self.edits:
            return None
        own = changed.permute(0, 3, 1, 2).to(out.device, out.dtype)
        if channels == slice(None):
            return own
        return torch.cat([out[:, : channels.start], own, out[:, channels.stop :]], 1)


def _sequence(module: nn.Module, path: str, x: torch.Tensor) -> tuple[list[tuple[set[str], nn.Module]], torch.Tensor]:
    """(steps of a module, its output): its children's, where running them one after the other gives the same."""
    out = module(x.clone())
    steps, value = [], x
    try:
        for name, child in module.named_children():
            inner, value = _sequence(child, f"{path}.{name}".lstrip("."), value)
            steps += inner
        if steps and value.shape == out.shape and same(value, out):
            steps[-1][0].add(path)
            return steps, out
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        pass
    return [({path}, module)], out


def _range(group: str) -> tuple[int, int] | None:
    """The bounds of a channel group given as "64-128"."""
    start, dash, end = group.partition("-")
    return (int(start), int(end)) if dash and start.isdigit() and end.isdigit() and int(start) < int(end) else None
