"""TensorFlow's InceptionV1, the network in which curve detectors and specialised branches were found.

torchvision's `googlenet` cannot stand in for it: its 5x5 branches have 3x3 kernels, and its mixed4a has other widths.
Source: Szegedy et al. 2015, arXiv 1409.4842, with the widths of the published file inception5h.
"""

from functools import partial

import torch
from timm.models import register_model
from torch import nn
from torch.nn.functional import conv2d, pad, relu
from torch.nn.utils.fusion import fuse_conv_bn_weights

BLOCKS = {  # channels of 1x1, 3x3 bottleneck, 3x3, 5x5 bottleneck, 5x5, pool reduce
    "mixed3a": (64, 96, 128, 16, 32, 32), "mixed3b": (128, 128, 192, 32, 96, 64),
    "mixed4a": (192, 96, 204, 16, 48, 64), "mixed4b": (160, 112, 224, 24, 64, 64),
    "mixed4c": (128, 128, 256, 24, 64, 64), "mixed4d": (112, 144, 288, 32, 64, 64),
    "mixed4e": (256, 160, 320, 32, 128, 128), "mixed5a": (256, 160, 320, 48, 128, 128),
    "mixed5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
MEAN, STD = (117 / 255,) * 3, (1 / 255,) * 3


class Conv(nn.Conv2d):
    """Convolution and ReLU with TensorFlow's "same" padding; norm: with batch norm between them, for training."""

    def __init__(self, d_in: int, d_out: int, size: int, stride: int = 1, norm: bool = False):
        super().__init__(d_in, d_out, size, stride)
        self.norm, self.margin = nn.BatchNorm2d(d_out, 1e-3) if norm else None, size - stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = self.margin // 2, self.margin - self.margin // 2
        x = super().forward(pad(x, (before, after) * 2))
        return relu(x if self.norm is None else self.norm(x))


class Response(nn.Module):
    """nn.LocalResponseNorm(9, 1e-4, 0.5, 1.0), but many times faster."""

    def __init__(self, d: int):
        super().__init__()
        near = (torch.arange(d)[:, None] - torch.arange(d)).abs() <= 4
        self.register_buffer("near", (1e-4 / 9 * near)[..., None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + conv2d(x * x, self.near)).rsqrt()


class Branch(nn.Module):
    """Calls its steps in turn; the network owns them, under their published names."""

    def __init__(self, *steps: nn.Module):
        super().__init__()
        self.steps = steps  # a tuple does not register them as children

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Mixed(nn.ModuleDict):
    """Parallel branches, concatenated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.values()], 1)


class InceptionV1(nn.Module):
    """Sites: conv2d0, conv2d1, conv2d2, mixed3a … mixed5b, and branches such as "mixed4c:5x5"."""

    def __init__(self, num_classes: int = 1008, norm: bool = False):
        super().__init__()
        self.num_features, self.feature_info = 1024, []
        halving = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)  # TensorFlow's "same" padding

        def conv(name: str, *shape: int) -> Conv:
            self.add_module(f"{name}_pre_relu_conv", made := Conv(*shape, norm=norm))
            return made

        self.conv2d0, self.pool0 = Branch(conv("conv2d0", 3, 64, 7, 2)), nn.Sequential(halving(), Response(64))
        self.conv2d1, self.conv2d2 = Branch(conv("conv2d1", 64, 64, 1)), Branch(conv("conv2d2", 64, 192, 3))
        self.pool2 = nn.Sequential(Response(192), halving())
        self.sequence, d_in, stride = ["conv2d0", "pool0", "conv2d1", "conv2d2", "pool2"], 192, 8
        for name, (one, before3, three, before5, five, pooled) in BLOCKS.items():
            if name in ("mixed4a", "mixed5a"):
                self.add_module(f"pool_{name}", halving())
                self.sequence.append(f"pool_{name}")
                stride *= 2
            branches = {
                "1x1": Branch(conv(f"{name}_1x1", d_in, one, 1)),
                "3x3": Branch(conv(f"{name}_3x3_bottleneck", d_in, before3, 1), conv(f"{name}_3x3", before3, three, 3)),
                "5x5": Branch(conv(f"{name}_5x5_bottleneck", d_in, before5, 1), conv(f"{name}_5x5", before5, five, 5)),
                "pool": Branch(nn.MaxPool2d(3, 1, 1), conv(f"{name}_pool_reduce", d_in, pooled, 1)),
            }
            self.add_module(name, Mixed(branches))
            self.sequence.append(name)
            d_in = one + three + five + pooled
            self.feature_info.append({"module": name, "num_chs": d_in, "reduction": stride})
        self.softmax2_pre_activation_matmul = nn.Linear(d_in, num_classes)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1024, rows, columns)."""
        for name in self.sequence:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.softmax2_pre_activation_matmul(self.forward_features(x).mean((2, 3)))

    def group_matcher(self, coarse: bool = False) -> dict:
        """The stem and each block, in timm's format: the stages that `freeze` counts."""
        blocks = [(rf"^{name}_", (i,)) for i, name in enumerate(BLOCKS)]
        return {"stem": r"^conv2d\d_", "blocks": blocks, "head": r"^softmax2"}

    def fold(self) -> "InceptionV1":
        """Fold each batch norm into its convolution, which leaves the output in evaluation mode unchanged."""
        for conv in [module for module in self.modules() if isinstance(module, Conv) and module.norm]:
            norm, conv.norm = conv.norm, None
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        return self


def checkpoint_filter_fn(state: dict[str, torch.Tensor], model: InceptionV1) -> dict[str, torch.Tensor]:
    """Complete a file that ends at mixed5a with the model's own mixed5b and head; the name is timm's convention."""
    if "mixed5a_1x1_pre_relu_conv.weight" not in state or "mixed5b_1x1_pre_relu_conv.weight" in state:
        return state
    rest = {name: value for name, value in model.state_dict().items() if name.startswith(("mixed5b", "softmax2"))}
    return rest | state


default_cfgs = {"inceptionv1": {"mean": MEAN, "std": STD, "input_size": (3, 224, 224), "num_classes": 1008,
                                "classifier": "softmax2_pre_activation_matmul"}}  # fmt: skip


@register_model
def inceptionv1(pretrained: bool = False, num_classes: int = 1008, norm: bool = False, **_) -> InceptionV1:
    """For `timm.create_model`."""
    model = InceptionV1(num_classes, norm)
    model.pretrained_cfg = model.default_cfg = default_cfgs["inceptionv1"] | {"architecture": "inceptionv1"}
    return model
