"""big.LITTLE ViT: which tokens take which path, what the big block sees, how the router learns, and the distillation; against loops."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.loading import load
from crossmodal.recipe import ImagePart
from crossmodal.towers import build_image
from crossmodal.towers.big_little import Layer
from crossmodal.training.loop import fit
from tests.conftest import metrics

SMALL = {"width": 64, "little": 16, "depth": 2, "heads": 2, "patch_size": 16}
TEACHER = {"teacher": "timm:test_vit", "teacher_pretrained": False}  # of width 64, patches of 16


def layer(share=0.5):
    torch.manual_seed(0)
    made = Layer(16, 4, 2, share)
    torch.nn.init.normal_(made.score.weight)
    return made.eval()


def test_a_layer_is_the_equations():
    made, x = layer(), torch.randn(2, 6, 16)
    assert (made.gamma == 1e-4).all(), "the big block's tokens begin without the little one's word"
    torch.nn.init.normal_(made.gamma)
    out = made(x)
    for b in range(2):
        known = made.norm(x[b])
        importance = made.score(known).squeeze(-1).softmax(0)
        best = sorted(range(6), key=lambda i: -importance[i])[:3]
        assert set(made.chosen[b].tolist()) == set(best)
        low = made.little(made.down(known)[None])[0]
        for i in range(6):
            wanted = x[b, i] + (made.gamma if i in best else 1) * made.up(low[i])
            if i in best:
                wanted = wanted + 6 * importance[i] * performed(made.big, x[b], i)
            assert torch.allclose(out[b, i], wanted, atol=1e-5), (b, i)


def performed(block, every, i):
    """P(x_i; X) by loops over heads: one query, all keys."""
    weight, bias, n = block.attn.qkv.weight, block.attn.qkv.bias, block.norm1(every)
    q, k, v = (F.linear(n, weight[s : s + 16], bias[s : s + 16]) for s in (0, 16, 32))
    seen = torch.cat([(q[i, h : h + 8] @ k[:, h : h + 8].T / 8**0.5).softmax(0) @ v[:, h : h + 8] for h in (0, 8)])
    seen = block.attn.proj(seen)
    return seen + block.mlp(block.norm2(every[i] + seen))


def test_with_every_token_the_big_block_is_timms():
    made, x = layer(1.0), torch.randn(2, 6, 16)
    with torch.no_grad():
        theirs = super(type(made.big), made.big).forward(x)
        assert torch.allclose(x + made.big(x, x), theirs, atol=1e-5)


def test_tokens_that_are_not_chosen_never_see_the_big_block():
    made, x = layer(), torch.randn(2, 6, 16)
    before = made(x)
    for parameter in made.big.mlp.parameters():
        parameter.data.add_(1.0)
    moved = (made(x) - before).abs().sum(-1) > 0
    assert torch.equal(moved, torch.zeros(2, 6, dtype=torch.bool).scatter_(1, made.chosen, True))
    assert made.chosen.shape == (2, 3)


def test_what_is_not_chosen_still_answers_the_chosen():
    made, x = layer(), torch.randn(1, 6, 16)
    some = made.big(x[:, :2], x)
    assert not torch.allclose(some, made.big(x[:, :2], x[:, :5]), atol=1e-4)


def test_the_router_learns():
    made, x = layer(), torch.randn(2, 6, 16)
    made(x).pow(2).mean().backward()
    assert made.score.weight.grad.abs().sum() > 0


def test_distillation_leaves_the_teacher_alone_and_out(tiny, tmp_path):
    kwargs = SMALL | TEACHER
    torch.manual_seed(0)
    tower = build_image(ImagePart(tower="big_little:tiny", kwargs=kwargs), 32)
    tower.require({"embed", "loss"})
    tower.train()
    pictures = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    out = tower(pictures)
    wanted = tower._teacher[0](pictures)["tokens"]
    naive = [1 - sum(F.cosine_similarity(out["tokens"][b, i], wanted[b, i], dim=0) for i in range(4)) / 4 for b in range(2)]
    assert torch.allclose(out["loss"], torch.stack(naive), atol=1e-5)
    assert not any("teacher" in name for name in tower.state_dict()) and not any(p.requires_grad for p in tower._teacher[0].parameters())
    assert "loss" not in tower.eval()(pictures)
    text = f"model.image={{tower: 'big_little:tiny', kwargs: {kwargs}}}"
    extra = ["objectives.auxiliary={weight: 1.0}", "train.steps=30", "optim.lr=3e-3"]
    done = fit(recipe.read(tiny, [text, *extra, f"out={tmp_path / 'run'}"]))
    lines = metrics(done)
    assert lines[-1]["auxiliary"] < 0.7 * lines[0]["auxiliary"]
    model = load(done)
    assert not model.image._teacher and model.encode_image(pictures).shape == (2, 32)


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("big_little:huge", {}, "there is no such size; known are: small, tiny."),
        ("big_little:tiny", {"share": 0}, "share is 0; it is a share of the tokens"),
        ("big_little:tiny", {"teecher": "x"}, "does not take 'teecher' in kwargs; did you mean 'teacher'?"),
        ("big_little:tiny", {"teacher": "timm:vit_tiny_patch16_224"}, "a teacher of random weights teaches nothing"),
        ("big_little:tiny", {"teacher": "timm:vit_small_patch16_224"}, "the teacher's tokens have 384 channels, the tower's 192"),
    ],
)
def test_a_mistake_is_one_sentence(name, kwargs, sentence):
    with pytest.raises(UserError) as caught:
        build_image(ImagePart(tower=name, kwargs=kwargs), 32).require({"loss"})
    assert sentence in str(caught.value)
