"""InceptionV1 against plain tensor products and the published table, with and without batch norm."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import pad, unfold

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import Network, build, pretrained
from aircraft_sae.networks.build import check_weights, freeze
from aircraft_sae.networks.inception import MEAN, STD, InceptionV1

TABLE = {  # in, 1x1, 3x3 bottleneck, 3x3, 5x5 bottleneck, 5x5, pool, out, stride: FACTS' columns
    "mixed3a": (192, 64, 96, 128, 16, 32, 32, 256, 8), "mixed3b": (256, 128, 128, 192, 32, 96, 64, 480, 8),
    "mixed4a": (480, 192, 96, 204, 16, 48, 64, 508, 16), "mixed4b": (508, 160, 112, 224, 24, 64, 64, 512, 16),
    "mixed4c": (512, 128, 128, 256, 24, 64, 64, 512, 16), "mixed4d": (512, 112, 144, 288, 32, 64, 64, 528, 16),
    "mixed4e": (528, 256, 160, 320, 32, 128, 128, 832, 16), "mixed5a": (832, 256, 160, 320, 48, 128, 128, 832, 32),
    "mixed5b": (832, 384, 192, 384, 48, 128, 128, 1024, 32),
}  # fmt: skip


def published() -> dict[str, tuple[int, ...]]:
    """The file's names and shapes."""
    shapes = {"conv2d0": (64, 3, 7, 7), "conv2d1": (64, 64, 1, 1), "conv2d2": (192, 64, 3, 3)}
    for name, (d_in, one, b3, three, b5, five, pool, _, _) in TABLE.items():
        shapes |= {
            f"{name}_1x1": (one, d_in, 1, 1), f"{name}_pool_reduce": (pool, d_in, 1, 1),
            f"{name}_3x3_bottleneck": (b3, d_in, 1, 1), f"{name}_3x3": (three, b3, 3, 3),
            f"{name}_5x5_bottleneck": (b5, d_in, 1, 1), f"{name}_5x5": (five, b5, 5, 5),
        }  # fmt: skip
    found = {f"{name}_pre_relu_conv.weight": shape for name, shape in shapes.items()}
    found |= {f"{name}_pre_relu_conv.bias": shape[:1] for name, shape in shapes.items()}
    return found | {
        "softmax2_pre_activation_matmul.weight": (1008, 1024),
        "softmax2_pre_activation_matmul.bias": (1008,),
    }


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights that keep signals at their scale."""
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) * (2 / max(1, np.prod(shape[1:]))) ** 0.5 if len(shape) > 1
            else torch.randn(shape, generator=g) / 10 for name, shape in published().items()}  # fmt: skip


def windows(x: torch.Tensor, size: int, stride: int, fill: float) -> torch.Tensor:
    """(n, c, size², places) under TensorFlow's "same" padding: an odd pixel goes after."""
    rows = -(-x.shape[-1] // stride)
    margin = max(0, (rows - 1) * stride + size - x.shape[-1])
    x = pad(x, (margin // 2, margin - margin // 2) * 2, value=fill)
    return unfold(x, size, stride=stride).view(len(x), x.shape[1], size**2, -1)


def plain(state: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer by matrix products, sums and maxima."""

    def conv(name, x, stride=1):
        weight, bias = (state[f"{name}_pre_relu_conv.{each}"] for each in ("weight", "bias"))
        out = weight.flatten(1) @ windows(x, weight.shape[-1], stride, 0.0).flatten(1, 2) + bias[:, None]
        return out.clamp(min=0).view(len(x), len(bias), *(-(-x.shape[-1] // stride),) * 2)

    def top(x, stride):
        return windows(x, 3, stride, -np.inf).amax(2).view(*x.shape[:2], *(-(-x.shape[-1] // stride),) * 2)

    def response(x):
        squares = pad(x.square(), (0, 0, 0, 0, 4, 4))
        sums = sum(squares[:, i : i + x.shape[1]] for i in range(9))
        return x / (1 + 1e-4 / 9 * sums).sqrt()

    seen = {"conv2d0": conv("conv2d0", x, 2)}
    seen["conv2d1"] = conv("conv2d1", response(top(seen["conv2d0"], 2)))
    seen["conv2d2"] = conv("conv2d2", seen["conv2d1"])
    x = top(response(seen["conv2d2"]), 2)
    for name in TABLE:
        x = top(x, 2) if name in ("mixed4a", "mixed5a") else x
        branches = [
            conv(f"{name}_1x1", x), conv(f"{name}_3x3", conv(f"{name}_3x3_bottleneck", x)),
            conv(f"{name}_5x5", conv(f"{name}_5x5_bottleneck", x)), conv(f"{name}_pool_reduce", top(x, 1)),
        ]  # fmt: skip
        seen[name] = x = torch.cat(branches, 1)
    weight, bias = (state[f"softmax2_pre_activation_matmul.{each}"] for each in ("weight", "bias"))
    return seen | {"logits": x.mean((2, 3)) @ weight.t() + bias}


@pytest.fixture(scope="module")
def network(state, tmp_path_factory) -> Network:
    """Weights come from a file, as if downloaded."""
    path = tmp_path_factory.mktemp("weights") / "inception5h.safetensors"
    save_file(state, path)
    return Network(build(ClassifierConfig(arch="inceptionv1", weights=str(path)), 1008), [], mean=MEAN, std=STD)


def test_names_and_shapes_are_the_published_files():
    assert {name: tuple(value.shape) for name, value in InceptionV1().state_dict().items()} == published()


@pytest.mark.parametrize("size", [64, 96])
def test_every_layer_equals_plain_tensor_products(state, network, size):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 60
    wanted = plain(state, x)
    seen = network.see(x, [name for name in wanted if name != "logits"])
    for name, value in wanted.items():
        own = seen.logits if name == "logits" else seen.acts[name].permute(0, 3, 1, 2)
        assert own.shape == value.shape
        assert (own - value).abs().max() <= 1e-4 * value.abs().max(), name


def test_input_is_bytes_less_117(network):
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    x = network.as_input(Image.fromarray(picture)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(x, picture.astype(float) - 117, atol=1e-3)


def test_branches_are_sites_and_the_end_has_a_closed_form(network):
    for name, (_, one, _, three, _, five, pool, out, stride) in list(TABLE.items())[::4]:
        widths = [network.shape(f"{name}:{branch}")[2] for branch in ("1x1", "3x3", "5x5", "pool")]
        assert widths == [one, three, five, pool] and network.shape(name) == (224 // stride, 224 // stride, out)
    x = torch.randn(1, 3, 224, 224)
    seen = network.see(x, ["mixed4c", "mixed4c:5x5"])
    assert torch.equal(seen.acts["mixed4c"][..., 384:448], seen.acts["mixed4c:5x5"])
    assert network.readout("mixed5b") is not None


def test_batch_norm_is_folded_into_the_convolutions():
    torch.manual_seed(0)
    model = InceptionV1(5, norm=True).train()
    for _ in range(3):
        model(torch.randn(4, 3, 64, 64) * 3 + 1)
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        torch.testing.assert_close(model.fold()(x), before, rtol=1e-4, atol=1e-5)
    InceptionV1(5).load_state_dict(model.state_dict())


def test_stages_can_be_frozen():
    model = build(ClassifierConfig(arch="inceptionv1", weights=None), 3)
    freeze(model, 2)  # the stem and mixed3a, mixed3b
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert "mixed4a_1x1_pre_relu_conv.weight" in trained and not any("mixed3" in n or "conv2d0" in n for n in trained)


def test_the_published_file_loads_by_its_path(state, tmp_path):
    torch.save(state, tmp_path / "inception5h.pth")
    network = pretrained(str(tmp_path / "inception5h.pth"), 64)
    assert network.name == "inception5h" and network.mean == MEAN and network.std == STD and network.size == 64
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 60
    torch.testing.assert_close(network.see(x).logits, plain(state, x)["logits"], rtol=1e-3, atol=1e-3)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.json"):
        pretrained(str(tmp_path / "mine.pth"), 64)
    (tmp_path / "mine.json").write_text('{"arch": "inceptionv1"}')
    assert pretrained(str(tmp_path / "mine.pth"), 64).name == "mine"


def test_a_file_that_ends_at_mixed5a_gets_a_new_last_block(state, network, tmp_path):
    kept = {name: value.half() for name, value in state.items() if not name.startswith(("mixed5b", "softmax2"))}
    save_file(kept, tmp_path / "short.safetensors")
    (tmp_path / "short.json").write_text('{"arch": "inceptionv1"}')
    cfg = ClassifierConfig(arch="inceptionv1", weights=str(tmp_path / "short.safetensors"))
    check_weights(cfg)
    short, x = pretrained(cfg.weights, 64), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 60
    acts = [each.see(x, ["mixed5a"]).acts["mixed5a"].detach() for each in (short, network)]
    torch.testing.assert_close(*acts, rtol=1e-2, atol=1e-2 * float(acts[1].abs().max()))
    assert (short.see(x, ["mixed5b"]).acts["mixed5b"] > 0).float().mean() > 0.2
    save_file({name: value for name, value in kept.items() if "mixed3a" not in name}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"does not fit arch 'inceptionv1'.*mixed3a"):
        build(ClassifierConfig(arch="inceptionv1", weights=str(tmp_path / "odd.safetensors")), 3)
