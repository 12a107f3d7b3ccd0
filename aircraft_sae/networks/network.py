"""Any CNN behind one interface: observe its sites, edit what passes through them, continue from stored activations."""

import copy
import difflib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from aircraft_sae.devices import has_bfloat16, run_parallel
from aircraft_sae.networks.readouts import PooledReadout, find_readout, same
from aircraft_sae.pictures import test_transform
from aircraft_sae.store import digest

BATCH = 64 if torch.cuda.is_available() else 16
"""Pictures per forward pass: on a CPU few enough for activations to stay in its caches, which is a quarter faster."""
Edit = Callable[[torch.Tensor], torch.Tensor]
_HOOKING = threading.Lock()  # torch has none: two threads could number hooks alike, and one would lose its hook


@dataclass
class Seen:
    """What a forward pass showed. acts: {site: (n, rows, columns, d)}; logits: (n, classes). Float32, on the CPU."""

    acts: dict[str, torch.Tensor]
    logits: torch.Tensor


@dataclass(eq=False)
class Network:
    """A CNN in evaluation mode, with its preprocessing and classes.

    classes: names in the order of the logits; level: the level of the taxonomy that they belong to.
    size, mean, std: pictures are squashed to (size, size) and normalised.
    mixed_precision: whether `mixed` passes use bfloat16 where the hardware has it.
    history: one row per epoch; predictions: `predict` on the test split.

    A site is the path of a module that outputs maps ("stages.2.blocks.1"), or "stage1", … where the model has stages.
    A branch of a concatenation, "mixed4c:5x5", is a site too: the channels that it fills.
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
        self.shape, self.readout = cache(self.shape), cache(self.readout)  # cached per network, and freed with it

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights, kind of model, preprocessing and classes, not of the name."""
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
        given: Mapping[str, torch.Tensor] | None = None, mixed: bool = False, logits: bool = True,
    ) -> Seen:  # fmt: skip
        """Run a batch x (n, 3, size, size), recording the acts at `sites` and editing those at `edits`.

        edits: {site: f}, f maps acts (n, rows, columns, d) to acts of the same shape; sites are recorded after edits.
        given: {site: acts} of one site to continue from; x may then be None if the network `can_start` there.
        logits: False ends the pass once all sites are recorded, with logits (n, 0).
        Gradients are tracked if the caller's grad mode tracks them.
        Raises: ValueError for an unknown site, an edit that changes the shape, a missing x.
        """
        edits, given = dict(edits or {}), given or {}
        for site in [*sites, *edits, *given]:
            self.check_site(site)
        start = None
        if given:
            ((site, acts),) = given.items()
            start, edit = self._step(site), edits.get(site, lambda acts: acts)
            if start is None:  # the whole network runs, and the given acts replace its own
                edits[site] = lambda _: edit(acts)
        if x is None and start is None:
            raise ValueError("this network cannot start at this site: give the pictures x too")
        mixed = mixed and self.mixed_precision and has_bfloat16(self.device)
        watch = _Watch(sites, edits, logits)
        with watch.on(self, start), torch.autocast(self.device.type, torch.bfloat16, mixed):
            try:
                if start is None:
                    out = self.model(x.to(self.device, non_blocking=True))
                else:
                    out = watch(site, slice(None), None, None, acts.to(self.device).permute(0, 3, 1, 2))
                    for _, module in self._steps[start + 1 :]:
                        out = module(out)
            except _Enough:
                out = torch.empty(len(x), 0)
        return Seen(watch.acts, out.float().cpu())

    def stream(
        self, batches: Iterable[torch.Tensor], sites: Sequence[str] = (), mixed: bool = False, logits: bool = True
    ) -> Iterator[Seen]:
        """`see` each batch, in order and without gradients; on a CPU several at once."""
        look = partial(self.see, sites=sites, mixed=mixed, logits=logits)
        yield from run_parallel(torch.inference_mode()(look), batches)

    def shape(self, site: str) -> tuple[int, int, int]:
        """(rows, columns, d) of a site's acts."""
        with torch.inference_mode():
            return tuple(self.see(torch.zeros(1, 3, self.size, self.size), [site]).acts[site].shape[1:])

    def check_site(self, site: str) -> None:
        """Raise ValueError for a site that this network does not have, suggesting similar names."""
        path, _, branch = site.partition(":")
        modules = {name: module for name, module in self.model.named_modules() if name}
        names = [*(f"stage{i + 1}" for i in range(len(getattr(self.model, "stages", [])))), *modules]
        if (module := modules.get(self._path(path))) is not None:
            branches = dict(module.named_children())
            if not branch or branch in branches:
                return
            names = [f"{path}:{name}" for name in branches]
        close = difflib.get_close_matches(site, names, n=5, cutoff=0.3) or names[:5]
        raise ValueError(f"no site {site!r} in {type(self.model).__name__}: did you mean {', '.join(close)}?")

    def can_start(self, site: str) -> bool:
        """Whether `see` can continue from stored acts of this site without a picture."""
        return self._step(site) is not None

    def readout(self, site: str) -> PooledReadout | None:
        """The closed form from the mean over a site's cells to the logits; None where there is none."""
        with torch.inference_mode():
            return find_readout(self, site)

    def permuted(self, seed: int = 0) -> "Network":
        """The network with each weight tensor permuted, which keeps only scale (Heap et al. 2025, arXiv 2501.17727)."""
        model, generator = copy.deepcopy(self.model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
        return replace(self, model=model, name="permuted", history=None, predictions=None)

    def channels(self, site: str) -> slice:
        """A site's channels in its module's output: all, or those that a branch fills."""
        path, _, branch = site.partition(":")
        if not branch:
            return slice(None)
        path = self._path(path)
        names, widths = [name for name, _ in self.model.get_submodule(path).named_children()], []
        with suppress(KeyError, ValueError):  # a child that is not called, or outputs no maps
            widths = [self.shape(f"{path}.{name}")[2] for name in names]
        if sum(widths) != self.shape(path)[2]:
            raise ValueError(f"{path} does not concatenate its children {', '.join(names)}: choose {path} as a whole")
        start = sum(widths[: names.index(branch)])
        return slice(start, start + widths[names.index(branch)])

    def _path(self, site: str) -> str:
        """The path of a site's module."""
        path = site.partition(":")[0]
        stage = re.fullmatch(r"stage(\d+)", path)
        return f"stages.{int(stage[1]) - 1}" if stage and hasattr(self.model, "stages") else path

    @cached_property
    def _steps(self) -> list[tuple[set[str], nn.Module]]:
        """(paths that name its output, module) of each step if the network is a plain sequence; else one step."""
        x = torch.rand(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return _sequence(self.model, "", x.to(self.device))[0]

    def _step(self, site: str) -> int | None:
        path = self._path(site)
        return next((i for i, (names, _) in enumerate(self._steps) if path in names and ":" not in site), None)


class _Enough(Exception):
    """Ends a forward pass once every site has been seen."""


@dataclass
class _Watch:
    """Records and edits sites in one forward pass; passes of other threads are left alone."""

    sites: Sequence[str]
    edits: dict[str, Edit]
    logits: bool
    acts: dict[str, torch.Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)

    @contextmanager
    def on(self, network: Network, start: int | None) -> Iterator[None]:
        """Hook the sites, except those up to step `start` of a sequence, which do not run."""
        hooked, handles = [], []
        for site in dict.fromkeys([*self.edits, *self.sites]):
            path, channels = network._path(site), network.channels(site)
            module = network.model.get_submodule(path)
            if start is not None and (step := network._step(path)) is not None:
                if step <= start:
                    continue
                module = network._steps[step][1]  # a sequence is run step by step
            hooked.append((module, partial(self, site, channels)))
        try:
            with _HOOKING:
                handles += [module.register_forward_hook(hook) for module, hook in hooked]
            yield
        finally:
            with _HOOKING:
                for handle in handles:
                    handle.remove()

    def __call__(self, site: str, channels: slice, _module, _given, out: torch.Tensor) -> torch.Tensor:
        """A forward hook: what a site passes on in place of `out`."""
        if threading.get_ident() != self.thread or (site not in self.sites and site not in self.edits):
            return out
        if not isinstance(out, torch.Tensor) or out.ndim != 4:
            raise ValueError(f"site {site!r} gives no maps (n, channels, rows, columns): choose a convolutional one")
        acts = out[:, channels].permute(0, 2, 3, 1).float().cpu().clone()  # later layers may work in place
        changed = self.edits[site](acts) if site in self.edits else acts
        if changed.shape != acts.shape:
            raise ValueError(f"the edit of {site!r} gives {tuple(changed.shape)} for acts {tuple(acts.shape)}")
        if site in self.sites:
            self.acts[site] = changed
            if not self.logits and len(self.acts) == len(self.sites):
                raise _Enough
        if site not in self.edits:
            return out
        own = changed.permute(0, 3, 1, 2).to(out.device, out.dtype)
        if channels == slice(None):
            return own
        return torch.cat([out[:, : channels.start], own, out[:, channels.stop :]], 1)


def _sequence(module: nn.Module, path: str, x: torch.Tensor) -> tuple[list[tuple[set[str], nn.Module]], torch.Tensor]:
    """(steps, output) of a module: its children's steps if running them in turn gives its output, else itself."""
    out = module(x.clone())
    steps, value = [], x
    with suppress(Exception):  # children may not even take each other's output
        for name, child in module.named_children():
            inner, value = _sequence(child, f"{path}.{name}".lstrip("."), value)
            steps += inner
        if steps and value.shape == out.shape and same(value, out):
            steps[-1][0].add(path)
            return steps, out
    return [({path}, module)], out
