"""Pictures: decoding, transparency, rotation, what is broken; augmentation as a function of a seed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from crossmodal.chance import seed_of
from crossmodal.data.views import BrokenPicture, EvalView, TrainView, load_picture
from crossmodal.recipe import Augment
from tests.conftest import encoded, shape


def test_jpeg_decodes_as_pil_does():
    data = encoded(shape("red", "circle"), "JPEG")
    ours = load_picture(data).permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert abs(ours - theirs).max() <= 2


def test_transparency_is_composited_on_white():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 255, 128))
    ours = load_picture(encoded(picture))
    assert ours[:, 1, 1].tolist() == [255, 255, 255]
    assert abs(ours[:, 0, 0].int() - torch.tensor([127, 127, 255])).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.fromarray(np.full((8, 8), 40000, np.uint16)) if mode == "I;16" else shape("blue", "square").convert(mode)
    data = io.BytesIO()
    picture.save(data, "JPEG" if mode == "CMYK" else "PNG")
    ours = load_picture(data.getvalue())
    assert ours.shape[0] == 3 and ours.dtype == torch.uint8
    if mode == "I;16":
        assert abs(int(ours[0, 0, 0]) - 156) <= 1  # 40000 / 256


def test_exif_rotation_is_applied():
    picture = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    picture.save(data, "JPEG", exif=exif)
    assert load_picture(data.getvalue()).shape == (3, 20, 10)


def test_what_is_broken_says_why(tmp_path, monkeypatch):
    data = encoded(shape("red", "circle"), "JPEG")
    for bad in (b"", b"no picture", data[: len(data) // 2], encoded(shape("red", "cross"))[:100]):
        with pytest.raises(BrokenPicture) as caught:
            load_picture(bad)
        assert str(caught.value)
    monkeypatch.setattr("crossmodal.data.views.MAX_PIXELS", 1000)
    with pytest.raises(BrokenPicture, match="64×56 pixels"):
        load_picture(data)


def test_training_view_is_a_function_of_the_seed_and_leaves_the_generator_alone():
    augment = Augment(rotate=20, shift=0.1, crop=(0.4, 1.0), flip=True, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=(0.1, 2.0))
    view, picture = TrainView(32, augment), load_picture(encoded(shape("green", "triangle")))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = view(picture, seed_of(0, 5, 1)), view(picture, seed_of(0, 5, 1)), view(picture, seed_of(0, 5, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.shape == (3, 32, 32) and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
def test_evaluation_view_is_square(resize):
    picture = torch.zeros(3, 20, 40, dtype=torch.uint8)
    out = EvalView(16, resize)(picture)
    assert out.shape == (3, 16, 16) and out.dtype == torch.uint8
    assert (out[:, 0] == 255).all() == (resize == "pad")
    picture[:, :, :10] = 200  # the outer quarter: cut off by the middle crop, kept by the others
    assert (EvalView(16, resize)(picture)[0, 8, 0] > 100) == (resize != "shortest")


def test_a_large_jpeg_is_decoded_no_larger_than_needed():
    picture = Image.effect_noise((640, 480), 60).convert("RGB").resize((640, 480))
    data = encoded(picture, "JPEG")
    whole, half, quarter = (load_picture(data, n) for n in (None, 237, 120))
    assert (whole.shape, half.shape, quarter.shape) == ((3, 480, 640), (3, 240, 320), (3, 120, 160))
    assert load_picture(data, 241).shape == whole.shape, "never smaller than asked"
    averaged = torch.nn.functional.avg_pool2d(whole.float(), 2)
    assert (half.float() - averaged).abs().mean() < 3, "the same picture"
    assert load_picture(encoded(picture, "PNG"), 100).shape == whole.shape
    assert TrainView(224, Augment(crop=(0.9, 1.0))).at_least == 237 and TrainView(224, Augment(crop=None)).at_least == 224


def test_a_crop_is_torchvisions_own():
    from torchvision.transforms import v2

    picture = load_picture(encoded(shape("red", "circle").resize((90, 70))))
    theirs = v2.RandomResizedCrop(32, (0.3, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    for seed in range(5):
        before = torch.get_rng_state()
        mine = TrainView(32, Augment(crop=(0.3, 1.0)))(picture, seed)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(seed)
        assert torch.equal(mine, theirs(picture))
