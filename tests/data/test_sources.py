"""Every format yields its pairs; every mistake is one sentence."""

import json

import pytest

from crossmodal.data.paths import braces
from crossmodal.data.sources import open_source
from crossmodal.errors import UserError
from tests.conftest import COLOURS, SHAPES, encoded, needs_shared, shape, write_tar


def test_csv_groups_captions_by_picture(pairs):
    source = open_source(str(pairs))
    assert len(source) == 48
    assert source[1].captions == ("a green circle", "this circle is green")
    assert source[1].image == (pairs.parent / "01.jpg").read_bytes()


def test_tsv_with_other_columns(pairs, tmp_path):
    table = pairs.parent / "other.tsv"
    table.write_text('text\timage\nhello, "you"\t00.png\n')
    source = open_source(f"tsv:{table}?image=image&caption=text")
    assert source[0].captions == ('hello, "you"',) or source[0].captions == ("hello, you",)
    assert len(open_source(f"{table}?image=image&caption=text")) == 1


def test_every_format_can_be_limited(pairs, class_folder):
    source = open_source(f"{pairs}?limit=5")
    assert len(source) == 5 and source[4].key == "04.png"
    assert len(open_source(f"folder:{class_folder}?limit=2").classes) == 4
    with pytest.raises(UserError, match="limit is a number of samples"):
        open_source(f"{pairs}?limit=few")


def test_folder_has_classes(class_folder):
    source = open_source(f"folder:{class_folder}")
    assert [c[0] for c in source.classes] == sorted(SHAPES)
    assert len(source) == 12 and source[0].label == 0 and source[0].captions == ("circle",)
    assert len(open_source(str(class_folder))) == 12


def test_tar_with_text_json_and_label(tar_file, tmp_path):
    source = open_source(str(tar_file))
    assert len(source) == 12
    assert source[0].captions == ("one red circle",)
    assert source[1].captions == ("a green square", "square, green")
    members = {f"{n}.png": encoded(shape(COLOURS[n], "square")) for n in range(2)}
    members |= {"0.json": b'{"label": 1}', "1.cls": b"0\n"}
    tar = write_tar(tmp_path / "labels.tar", members)
    (tmp_path / "names.txt").write_text("first\nsecond\n")
    labelled = open_source(f"wds:{tar}?classes={tmp_path / 'names.txt'}")
    assert [labelled[i].label for i in range(2)] == [1, 0]
    assert labelled[0].captions == ("second",)


def test_captions_under_a_key_of_their_own(tmp_path):
    said = [{"alt": "one", "i18n": {"ja": "一", "fr": ["un", "une"]}}, {"i18n.ja": "二", "caption": "two"}, {"i18n": "none"}]
    members = {f"{n}.png": encoded(shape("red", "square")) for n in range(3)} | {"0.txt": b"text"}
    tar = write_tar(tmp_path / "keys.tar", members | {f"{n}.json": json.dumps(about).encode() for n, about in enumerate(said)})
    captions = lambda key: [open_source(f"wds:{tar}?caption={key}")[n].captions for n in range(3)]
    assert captions("alt") == [("one",), (), ()]
    assert captions("i18n.ja") == [("一",), ("二",), ()]
    assert captions("i18n.fr") == [("un", "une"), (), ()]


def test_labels_that_are_words_are_the_classes(tmp_path):
    members = {f"{n}.png": encoded(shape("red", "square")) for n in range(4)}
    members |= {f"{n}.json": json.dumps({"label": word}).encode() for n, word in enumerate(["pine_tree", "apple", "apple", "fox"])}
    source = open_source(str(write_tar(tmp_path / "words.tar", members)))
    assert source.classes == [("apple",), ("fox",), ("pine tree",)]
    assert [source[i].label for i in range(4)] == [2, 0, 0, 1]
    assert source[0].captions == ("pine tree",)


def test_shared_classes():
    source = open_source(str(needs_shared("cifar100-2000-32.tar")))
    assert len(source) == 2000 and len(source.classes) == 100 and ("aquarium fish",) in source.classes


@pytest.mark.parametrize("text", [b"[1]", b"{broken", b'{"caption": 5}', b'{"captions": [null, " "]}', b"{}"])
def test_json_without_a_caption_is_a_sample_without_one(tmp_path, text):
    source = open_source(str(write_tar(tmp_path / "x.tar", {"0.png": encoded(shape("red", "cross")), "0.json": text})))
    assert source[0].captions == ()


def test_brace_lists(tmp_path, tar_file):
    assert braces("a/{08..10}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar"]
    assert braces("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    for n in range(2):
        (tmp_path / f"{n}.tar").write_bytes(tar_file.read_bytes())
    assert len(open_source(f"wds:{tmp_path}/{{0..1}}.tar")) == 24


def test_emoji_styles_share_concepts_and_order():
    train, test = open_source("emoji:twemoji"), open_source("emoji:openmoji")
    assert train.keys == test.keys and train.classes == test.classes
    assert 1850 <= len(train) <= 2000
    assert not any("1f3fb" in k for k in train.keys)
    assert train[0].image != test[0].image
    assert test[0].image.startswith(b"\x89PNG")
    assert "grinning face" in train.classes[train.keys.index("1f600")]


def test_shared_shards():
    source = open_source(str(needs_shared("flickr8k-val-128.tar")))
    assert len(source) == 1000 and len(source[0].captions) == 5


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: d / "missing.csv", "missing.csv: no such file."),
        (lambda d: d / "missing.tar", "missing.tar: no such file."),
        (lambda d: d / "nothing", "its ending says no format"),
        (lambda d: f"cvs:{d}/x", "there is no data format 'cvs'; did you mean 'csv'?"),
        (lambda d: d / "empty", "holds no pictures; one folder for each class is expected"),
        (lambda d: d / "column.csv", "has no column 'filepath' (its columns: file, title); did you mean 'file'?"),
        (lambda d: d / "gone.csv", "names the picture 'no.jpg'"),
        (lambda d: f"csv:{d}/column.csv?imgae=file", "the format 'csv' has no option 'imgae'; did you mean 'image'?"),
        (lambda d: d / "latin.csv", "latin.csv: not UTF-8 text (byte 15)"),
        (lambda d: d / "cut.tar", "cut.tar: not a whole tar file"),
        (lambda d: d / "only-pictures.tar", "holds no picture with its text"),
        (lambda d: "emoji:noto", "there is no such style; known are: openmoji, twemoji."),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, tar_file, make, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "column.csv").write_text("file,title\na.jpg,b\n")
    (tmp_path / "gone.csv").write_text("filepath,title\nno.jpg,b\n")
    (tmp_path / "latin.csv").write_bytes("filepath,title\né.jpg,b\n".encode("latin-1"))
    whole = tar_file.read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 - 100])
    write_tar(tmp_path / "only-pictures.tar", {"0.png": encoded(shape("red", "cross"))})
    with pytest.raises(UserError) as caught:
        open_source(str(make(tmp_path)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 511, 1024, 3000, 10240])
def test_a_tar_cut_anywhere_is_refused_or_whole(tar_file, tmp_path, cut):
    """Cutting into members is refused. Only the end-of-archive padding may go unnoticed."""
    data = tar_file.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:-cut])
    try:
        source = open_source(str(tmp_path / "cut.tar"))
    except UserError as error:
        assert "not a whole tar file" in str(error)
    else:
        assert len(source) == 12


def test_links_in_a_tar_are_not_followed(tmp_path):
    import io
    import tarfile

    path = tmp_path / "link.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        text = tarfile.TarInfo("0.json")
        data = json.dumps({"caption": "x"}).encode()
        text.size = len(data)
        tar.addfile(text, io.BytesIO(data))
    with pytest.raises(UserError, match="holds no picture"):
        open_source(str(path))
