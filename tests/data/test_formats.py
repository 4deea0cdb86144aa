"""One data set in every format: the same samples in the same order. And a folder of everything that can go wrong."""

import http.server
import io
import json
import threading
from functools import partial

import pytest
from PIL import Image

from crossmodal.cli import main
from crossmodal.data.convert import convert, kind
from crossmodal.data.sources import open_source
from crossmodal.errors import UserError
from tests.conftest import SHARED, encoded, shape, write_tar


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Flickr8k's validation pictures, or drawn ones with two captions each where it is not here."""
    if (SHARED / "flickr8k-val-128.tar").is_file():
        return open_source(f"{SHARED / 'flickr8k-val-128.tar'}?limit=200")
    folder = tmp_path_factory.mktemp("original")
    members = {}
    for n in range(40):
        members[f"{n:02d}.jpg"] = encoded(shape("red", "circle", n), "JPEG")
        members[f"{n:02d}.json"] = json.dumps({"captions": [f"a red circle, the {n}th", f"number {n}"]}).encode()
    return open_source(str(write_tar(folder / "o.tar", members)))


@pytest.fixture(scope="module")
def written(original, tmp_path_factory):
    """The pictures as files in a folder, with every list that formats keep beside them."""
    import csv

    root = tmp_path_factory.mktemp("formats")
    (root / "pictures").mkdir()
    (root / "paired").mkdir()
    rows, coco, karpathy = [], {"images": [], "annotations": []}, []
    for n in range(len(original)):
        sample = original[n]
        name = f"{n:05d}.{kind(sample.image)}"
        for folder in ("pictures", "paired"):
            (root / folder / name).write_bytes(sample.image)
        (root / "paired" / f"{n:05d}.txt").write_text("\n".join(sample.captions) + "\n")
        rows += [(name, caption) for caption in sample.captions]
        coco["images"].append({"id": 7 * n, "file_name": name})
        coco["annotations"] += [{"image_id": 7 * n, "caption": c + "\n"} for c in sample.captions]
        karpathy.append({"filename": name, "split": "val", "sentences": [{"raw": c} for c in sample.captions]})
    for file, header in (
        (root / "pictures" / "metadata.csv", ("file_name", "text")),
        (root / "pictures" / "pairs.csv", ("filepath", "title")),
    ):
        with file.open("w", newline="") as lines:
            csv.writer(lines).writerows([header, *rows])
    (root / "coco.json").write_text(json.dumps(coco))
    (root / "karpathy.json").write_text(json.dumps({"images": [{**karpathy[0], "split": "train"}, *karpathy]}))
    convert(original, root / "shards", shard=70)
    convert(original, root / "all.parquet")
    return root


def dataset(root):
    """As a user of the datasets library saves it."""
    from datasets import Dataset, Image

    source = open_source(f"coco:{root}/coco.json?images={root}/pictures")
    rows = [source[n] for n in range(len(source))]
    made = Dataset.from_dict({"image": [{"bytes": s.image, "path": None} for s in rows], "captions": [list(s.captions) for s in rows]})
    made.cast_column("image", Image()).save_to_disk(root / "saved")
    return f"{root}/saved"


SPECS = {
    "csv": "{root}/pictures/pairs.csv",
    "tar": "wds:{root}/shards/{{00000..00002}}.tar",
    "parquet": "{root}/all.parquet",
    "coco": "coco:{root}/coco.json?images={root}/pictures",
    "karpathy": "karpathy:{root}/karpathy.json?images={root}/pictures&split=val",
    "metadata": "{root}/pictures",
    "paired": "{root}/paired",
}


@pytest.mark.parametrize("name", [*SPECS, "hf"])
def test_every_format_gives_the_same_samples_in_the_same_order(original, written, name):
    if name == "tar" and len(original) <= 140:
        pytest.skip("the photos are not on this machine; three shards need more than 140 samples")
    source = open_source(dataset(written) if name == "hf" else SPECS[name].format(root=written))
    assert len(source) == len(original)
    for n in range(len(original)):
        mine, theirs = source[n], original[n]
        assert mine.image == theirs.image and mine.captions == theirs.captions, n


def test_a_mixture_by_weights(written):
    one, other = SPECS["csv"].format(root=written), SPECS["parquet"].format(root=written)
    source = open_source(f"mix:2*{one}+0.1*{other}")
    count = len(open_source(one))
    assert len(source) == 2 * count + round(0.1 * count)
    assert source[0] == source[count] == open_source(one)[0]
    every = [source[2 * count + n].image for n in range(round(0.1 * count))]
    assert every == [open_source(other)[n * count // round(0.1 * count)].image for n in range(round(0.1 * count))]
    for said, wanted in (
        (f"mix:x*{one}", "ends|no such|format"),
        (f"mix:{one}+", "a part is missing"),
        (f"mix:0.001*{one}", "gives no sample"),
    ):
        with pytest.raises(UserError, match=wanted):
            open_source(said)


def test_addresses_are_fetched(written, tmp_path):
    """A table of addresses; one that answers 404 is a broken picture, not the end."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(written / "pictures"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        first = sorted(p.name for p in (written / "pictures").iterdir() if p.suffix != ".csv")[0]
        (tmp_path / "t.csv").write_text(f"filepath,title\n{at}/{first},one\n{at}/none.jpg,two\n")
        source = open_source(str(tmp_path / "t.csv"))
        assert source[0].image == (written / "pictures" / first).read_bytes()
        with pytest.raises(OSError, match="404"):
            _ = source[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("coco:{d}/none.json", "no such file"),
        ("coco:{d}/list.json", "not COCO's layout"),
        ("karpathy:{d}/list.json", "not Karpathy's layout"),
        ("karpathy:{d}/k.json?split=tset", "has no split 'tset'; its splits: test"),
        ("paired:{d}/folder", "holds no picture with its text"),
        ("metadata:{d}/folder", "holds neither metadata.csv nor metadata.jsonl"),
        ("metadata:{d}/meta", "line 2: is no JSON"),
        ("{d}/x.parquet", "not readable parquet"),
        ("{d}/none.parquet", "no such file"),
        ("{d}/t.parquet", "which of its columns is the image? (a, b) Say so with ?image=COLUMN"),
        ("{d}/t.parquet?image=c", "has no column 'c' (its columns: a, b)"),
        ("winoground:{d}/list.json", "line 1: not an instance"),
        ("sugarcrepe:{d}/list.json", "not SugarCrepe's layout"),
        ("clip_benchmark:{d}", "nshards.txt: no such file"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, spec, sentence):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "k.json").write_text('{"images": [{"filename": "a.jpg", "split": "test", "sentences": []}]}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "x"}\n{oh}\n')
    (tmp_path / "x.parquet").write_bytes(b"no")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": [2]}), tmp_path / "t.parquet")
    with pytest.raises(UserError) as caught:
        open_source(spec.format(d=tmp_path))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def hostile(tmp_path):
    """60 files in pairs of a picture and its text: 20 whole in odd ways, 10 broken in all."""
    picture = shape("red", "circle")
    jpeg, png = encoded(picture, "JPEG"), encoded(picture)

    def save(image, kind, **options) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.new("I;16", (40, 40), 40000)),
        "palette.png": encoded(picture.convert("P")),
        "bilevel.png": encoded(picture.convert("1")),
        "grey.jpg": encoded(picture.convert("L"), "JPEG"),
        "alpha.png": encoded(picture.convert("RGBA")),
        "moving.gif": save(picture, "GIF", save_all=True, append_images=[shape("blue", "square")]),
        "animated.webp": save(picture, "WEBP", save_all=True, append_images=[shape("blue", "square")]),
        "turned.jpg": save(picture, "JPEG", exif=exif),
        "progressive.jpg": save(picture, "JPEG", progressive=True),
        "bitmap.bmp": encoded(picture, "BMP"),
        "tiff.tif": encoded(picture, "TIFF"),
        "tiny.png": encoded(Image.new("RGB", (1, 1))),
        "wide.png": encoded(Image.new("RGB", (900, 2))),
        "png_named.jpg": png,
        **{f"plain{n}.jpg": encoded(shape("green", "square", n), "JPEG") for n in range(5)},
    }
    broken = {
        "cut1.jpg": jpeg[: len(jpeg) // 2],
        "cut2.jpg": jpeg[: len(jpeg) // 3],
        "cut3.png": png[: len(png) // 2],
        "empty1.jpg": b"",
        "empty2.png": b"",
        "text.jpg": b"this is no picture",
        "page.png": b"<html>404</html>",
        "bomb.png": save(Image.new("1", (20000, 20000)), "PNG", optimize=True),
        "half.tif": encoded(picture, "TIFF")[:60],
        "noise.webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(range(40)),
    }
    assert len(odd) == 20 and len(broken) == 10
    for name, data in {**odd, **broken}.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    (tmp_path / "plain0.txt").write_bytes(b"caf\xe9 is not UTF-8")
    (tmp_path / "plain1.txt").write_text("word " * 20000)
    (tmp_path / "plain2.txt").write_text("\n \n")
    return tmp_path


def test_a_hostile_folder_is_counted_by_cause(hostile, capsys):
    from crossmodal.data.inspect import look

    source = open_source(str(hostile))
    assert len(source) == 30
    found = look(source)
    broken = {cause: len(keys) for cause, keys in found.broken.items()}
    assert sum(broken.values()) == 10, broken
    assert broken == {"too many pixels": 1, "cut short": 3, "damaged": 1, "no picture format is recognised": 5}
    assert found.without_caption == 1
    assert main(["data", "inspect", str(hostile), "--grid", str(hostile / "grid.png")]) == 0
    told = capsys.readouterr().out
    assert "1 × too many pixels: bomb.png" in told and "1 pictures have none" in told and "% are cut at 77" in told
    assert Image.open(hostile / "grid.png").width > 800


def test_hostile_pictures_train_with_their_own_captions(hostile, tiny, tmp_path):
    """Every caption that comes out of the loader is that of its picture, or of the whole one that stands in for it, and both are named."""
    import torch

    from crossmodal.batch import ViewSpec
    from crossmodal.data.loader import TrainingPairs, training_batches
    from crossmodal.recipe import DataPart

    source = open_source(str(hostile))
    data = DataPart(train=str(hostile), image_size=32, batch_size=9, workers=0)
    pairs = TrainingPairs(source, {"image": ViewSpec("image"), "text": ViewSpec("text")}, data, "shortest", 0)
    said = []
    tokenize = lambda texts: (said.append(texts), torch.zeros(len(texts), 4, dtype=torch.long))[1]
    for batch in training_batches(pairs, source, data, tokenize, 0, 0, 3):
        for key, text in zip(batch.keys, said[-1], strict=True):
            assert text == f"caption of {key}" or key.startswith(("plain0", "plain1")), (key, text)
        assert all(
            key.partition(".")[0].rstrip("123") in ("cut", "empty", "text", "page", "bomb", "half", "noise", "plain")
            for key, _ in batch.broken
        )


def test_convert_writes_whole_files_and_says_what_it_left_out(hostile, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "convert", str(hostile), str(out)]) == 0
    told = capsys.readouterr()
    again = open_source(str(out / "00000.tar"))
    assert f"{len(again):,} samples" in told.out and "was left out: no picture format is recognised" in told.err
    assert main(["data", "convert", str(hostile), str(out)]) == 2
    assert main(["data", "convert", str(hostile), str(tmp_path / "x.zip")]) == 2
    assert "ends in .parquet" in capsys.readouterr().err
    assert main(["data", "convert", str(hostile), str(tmp_path / "x.parquet")]) == 0
    assert len(open_source(str(tmp_path / "x.parquet"))) == len(again)


def test_labels_survive_conversion(class_folder, tmp_path):
    source = open_source(str(class_folder))
    convert(source, tmp_path / "a.parquet")
    convert(source, tmp_path / "tars")
    for spec in (tmp_path / "a.parquet", tmp_path / "tars" / "00000.tar"):
        again = open_source(str(spec))
        assert [again[n].label for n in range(12)] == [source[n].label for n in range(12)]
        assert again.classes == source.classes
