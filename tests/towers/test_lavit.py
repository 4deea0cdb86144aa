"""LaViT: which layers compute attention, what re-using it means, what goes from stage to stage, and its loss; against loops."""

import pytest
import torch

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.loading import load
from crossmodal.recipe import ImagePart
from crossmodal.towers import build_image
from crossmodal.towers.lavit import Computed, Downsample, Layer, Reused, unlikeness
from crossmodal.training.loop import fit
from tests.conftest import metrics

SMALL = {"widths": [8, 16, 20, 32], "heads": [1, 2, 2, 4], "depths": [1, 1, 3, 3], "computed": [1, 1, 1, 2]}


def tower(**kwargs):
    torch.manual_seed(0)
    return build_image(ImagePart(tower="lavit:tiny", kwargs=SMALL | kwargs), 64)


def test_only_the_first_layers_of_a_stage_compute_attention():
    made = tower()
    kinds = [[type(layer.attn).__name__ for layer in stage.layers] for stage in made.stages]
    assert kinds == [["Attention"], ["Attention"], ["Computed", "Reused", "Reused"], ["Computed", "Computed", "Reused"]]
    reused = [m for m in made.modules() if isinstance(m, Reused)]
    assert all({n.partition(".")[0] for n, _ in m.named_parameters()} == {"value", "proj", "theta", "psi"} for m in reused)
    asked = []
    for module in made.modules():
        if isinstance(module, (Computed, Reused)):
            module.register_forward_hook(lambda m, given, out: asked.append((m, given[1], out[1])))
    made.eval()(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    before = None
    for module, given, scores in asked:
        side = 4 if scores.shape[-1] == 16 else 2
        assert scores.shape == (2, 2 if side == 4 else 4, side * side, side * side)
        if isinstance(module, Reused):
            assert given is before, "the scores of the layer before"
        before = scores


def test_reused_scores_are_both_transforms_of_those_before():
    torch.manual_seed(0)
    module, x, before = Reused(8, 2, 5), torch.randn(3, 5, 8), torch.randn(3, 2, 5, 5)
    assert torch.equal(module(x, before)[1], before), "they begin as identities"
    module.theta.data, module.psi.data = torch.randn(5, 5), torch.randn(5, 5)
    z, scores = module(x, before)
    v = module.value(x)
    for b in range(3):
        wanted = torch.zeros(5, 8)
        for h in range(2):
            along_keys = torch.stack([module.theta @ before[b, h, i] for i in range(5)])  # Θ of each row
            a = torch.stack([module.psi @ along_keys[:, j] for j in range(5)], dim=1)  # Ψ of each column
            assert torch.allclose(scores[b, h], a, atol=1e-5)
            for i in range(5):
                wanted[i, 4 * h : 4 * h + 4] = sum(a[i].softmax(0)[j] * v[b, j, 4 * h : 4 * h + 4] for j in range(5))
        assert torch.allclose(z[b], module.proj(wanted), atol=1e-5)


def test_computed_scores_have_those_of_the_stage_before_added():
    torch.manual_seed(0)
    module, x = Computed(8, 2), torch.randn(3, 5, 8)
    q, k = module.q(x), module.kv(x)[..., :8]
    plain = torch.stack([q[..., h : h + 4] @ k[..., h : h + 4].mT / 2 for h in (0, 4)], 1)
    before = torch.randn(3, 2, 5, 5)
    assert torch.allclose(module(x, None)[1], plain, atol=1e-5)
    assert torch.allclose(module(x, before)[1], plain + before, atol=1e-5)
    theirs = Layer.__mro__[1](8, 2, 4, qkv_bias=True).attn  # timm's own, with the same weights
    theirs.load_state_dict(module.state_dict())
    assert torch.allclose(module(x, None)[0], theirs(x, [1, 5]), atol=1e-5)


def test_scores_between_stages_are_averaged_over_both_grids():
    torch.manual_seed(0)
    down, scores = Downsample(4, 2, 2), torch.randn(1, 2, 16, 16)
    torch.nn.init.dirac_(down.local.weight, groups=2), torch.nn.init.zeros_(down.local.bias)
    torch.nn.init.dirac_(down.mix.weight), torch.nn.init.zeros_(down.mix.bias)
    out = down(scores)
    assert out.shape == (1, 2, 4, 4)
    inside = lambda n: [(2 * (n // 2) + dy) * 4 + 2 * (n % 2) + dx for dy in (0, 1) for dx in (0, 1)]  # the four tokens that become n
    for i in range(4):
        for j in range(4):
            assert torch.allclose(out[0, :, i, j], scores[0][:, inside(i)][..., inside(j)].mean((1, 2)), atol=1e-6)


def test_the_loss_is_the_papers_and_least_on_the_diagonal():
    torch.manual_seed(0)
    p = torch.randn(2, 3, 4, 4).softmax(-1)
    for b in range(2):
        rows = []
        for h in range(3):
            a = p[b, h]
            for i in range(4):
                others = sum(a[i, j] for j in range(4) if j != i) / 3
                rows.append(sum((a[i, j] - a[j, i]).abs() for j in range(4)) + others - a[i, i])
        assert torch.isclose(unlikeness(p)[b], sum(rows) / len(rows), atol=1e-6)
    assert unlikeness(torch.eye(4).expand(1, 1, 4, 4)).item() == -1


def test_it_trains_with_its_loss_and_comes_back(tiny, tmp_path):
    text = f"model.image={{tower: 'lavit:tiny', kwargs: {SMALL}}}"
    extra = ["data.image_size=64", "objectives.auxiliary={weight: 10.0}", "train.steps=40", "optim.lr=3e-3"]
    out = fit(recipe.read(tiny, [text, *extra, f"out={tmp_path / 'run'}"]))
    lines = metrics(out)
    assert lines[-1]["auxiliary"] < lines[0]["auxiliary"] - 0.02 and lines[-1]["contrastive"] < lines[0]["contrastive"]
    model = load(out)
    assert model.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "sentence"),
    [
        ("lavit:huge", {}, 64, "there is no such size; known are: small, tiny."),
        ("lavit:tiny", {"width": 3}, 64, "does not take 'width' in kwargs; did you mean 'widths'?"),
        ("lavit:tiny", {}, 60, "needs a multiple of 32"),
        ("lavit:tiny", {"computed": [1, 2, 2, 2]}, 64, "the first two stages compute all"),
        ("lavit:tiny", {"depths": [2, 2]}, 64, "a number for each of the four stages"),
    ],
)
def test_a_mistake_is_one_sentence(name, kwargs, size, sentence):
    with pytest.raises(UserError) as caught:
        build_image(ImagePart(tower=name, kwargs=kwargs), size)
    assert sentence in str(caught.value)
