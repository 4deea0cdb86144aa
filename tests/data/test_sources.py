"""Every format yields its pairs; every mistake is one sentence."""

import io
import json
import tarfile

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
        (lambda d: d / "latin.csv", "latin.csv, line 2: not UTF-8 text."),
        (lambda d: d / "wide.csv", "wide.csv, line 1: not UTF-8 text."),
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
    (tmp_path / "wide.csv").write_text("filepath,title\na.jpg,b\n", encoding="utf-16")
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


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.8])
def test_half_a_shard_among_others_costs_what_is_missing_and_pairs_nothing_wrongly(tar_file, tmp_path, capsys, share):
    data = tar_file.read_bytes()
    for name, length in (("0.tar", len(data)), ("1.tar", int(len(data) * share)), ("2.tar", len(data))):
        (tmp_path / name).write_bytes(data[:length])
    with tarfile.open(tar_file) as tar:
        stand = [m.name.partition(".")[0] for m in tar if m.offset_data + m.size <= len(data) * share]
    whole, source = open_source(str(tar_file)), open_source(f"{tmp_path}/{{0..2}}.tar")
    here = [whole[n] for n in range(len(whole))]
    assert [source[n] for n in range(len(source))] == here + here[: max(0, len(set(stand)) - 1)] + here
    assert "1 ends of shards that are not whole (1.tar; download them again)" in capsys.readouterr().err


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


def test_a_key_that_comes_again_begins_another_sample(tmp_path):
    red, green, blue = (encoded(shape(colour, "circle")) for colour in ("red", "green", "blue"))
    members = [("a.png", red), ("a.txt", b"red"), ("b.txt", b"lost"), ("a.png", green), ("a.txt", b"green"), ("a.png", blue)]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "x.tar"))
    assert [(source[n].image, source[n].captions) for n in range(2)] == [(red, ("red",)), (green, ("green",))] and len(source) == 2
    assert source.left_out == {"texts without a picture": 1, "pictures without a text": 1}
    (tmp_path / "two.tar").write_bytes((tmp_path / "x.tar").read_bytes() * 2)
    with pytest.raises(UserError, match="something stands behind its end"):
        open_source(str(tmp_path / "two.tar"))


def test_what_is_passed_over_is_said(pairs, tmp_path, capsys):
    table = pairs.parent / "half.csv"
    table.write_text("filepath, title\n00.png,one\n01.jpg,\n02.png,  \n")
    assert len(open_source(str(table))) == 1
    assert "passed over 2 rows without a caption" in capsys.readouterr().err
    table.unlink()


def test_rows_that_are_no_text_cost_no_more_than_themselves(tmp_path, capsys):
    shape("red", "circle").save(tmp_path / "a.png")
    rows = ["a.png,a circle", "a.png,caf\u00e9", "a.png,\u5186"]
    for name, header in (("t.csv", "filepath,title"), ("metadata.csv", "file_name,text")):
        lines = [header.encode(), rows[0].encode(), rows[1].encode("latin-1"), rows[2].encode()]
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
        source = open_source(str(tmp_path / name) if name == "t.csv" else f"metadata:{tmp_path}")
        assert source[0].captions == ("a circle", "\u5186")
        assert "passed over 1 rows that are not UTF-8 text (the first in line 3)" in capsys.readouterr().err
    (tmp_path / "metadata.csv").unlink()
    half = b'{"file_name": "a.png", "text": "half \\ud83d"}\n{"file_name": "a.png", "text": "caf\xe9"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(half)
    source = open_source(f"metadata:{tmp_path}")
    assert source[0].captions == ("half \ufffd",) and list(source.left_out.values()) == [1]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a.jpg,a dog, running\n", "line 2: has 3 fields, where the header has 2"),
        ("a.jpg\n", "line 2: has 1 field, where the header has 2"),
        ('a.jpg,one\nb.jpg,"two\nc.jpg,three\n', "line 3: unexpected end of data; is a quotation mark never closed"),
    ],
)
def test_a_malformed_table_names_its_line(tmp_path, rows, sentence):
    for name, header in (("t.csv", "filepath,title\n"), ("metadata.csv", "file_name,text\n")):
        (tmp_path / name).write_text(header + rows)
        with pytest.raises(UserError) as caught:
            open_source(str(tmp_path / name) if name == "t.csv" else f"metadata:{tmp_path}")
        assert sentence in str(caught.value)


def test_folders_are_what_stands_in_them(tmp_path):
    def put(place):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shape("red", "circle").save(tmp_path / place)

    for place in ("pairs/sub/a.png", "hub/train/a.png", "classes/cat/a.png"):
        put(place)
    (tmp_path / "pairs" / "sub" / "a.txt").write_text("a caption")
    (tmp_path / "hub" / "train" / "metadata.csv").write_text("file_name,text\na.png,said\n")
    (tmp_path / "classes" / "README.txt").write_text("about them")
    assert open_source(str(tmp_path / "pairs"))[0].captions == ("a caption",)
    assert open_source(str(tmp_path / "classes")).classes == [("cat",)]
    with pytest.raises(UserError, match=r"has metadata\.csv in a folder of it; name that one"):
        open_source(str(tmp_path / "hub"))


def test_a_folder_of_shards_is_all_of_them(tar_file, tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.tar").write_bytes(tar_file.read_bytes())
    assert len(open_source(str(tmp_path))) == len(open_source(f"wds:{tmp_path}")) == 24


def test_parts_of_a_mixture_have_their_own_options(pairs, tar_file):
    other = pairs.parent / "other.csv"
    other.write_text("img,alt\n00.png,one\n")
    source = open_source(f"mix:{pairs}?limit=3+csv:{other}?image=img&caption=alt+2*{tar_file}?limit=2")
    assert len(source) == 3 + 1 + 4 and source[3].captions == ("one",)


def test_half_a_character_becomes_a_replacement(tmp_path):
    members = {"0.png": encoded(shape("red", "cross")), "0.json": b'{"caption": "broken \\ud83d emoji, whole \\ud83d\\ude00"}'}
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].captions == ("broken \ufffd emoji, whole \U0001f600",)


@pytest.mark.parametrize(
    ("members", "captions", "label"),
    [
        ({"0.cls": b"dog"}, (), None),
        ({"0.json": b"[" * 100_000}, (), None),
        ({"0.json": '{"caption": "café"}'.encode("latin-1")}, ("caf\ufffd",), None),
    ],
)
def test_a_text_that_is_damaged_costs_no_more_than_itself(tmp_path, members, captions, label):
    source = open_source(str(write_tar(tmp_path / "x.tar", {"0.png": encoded(shape("red", "cross"))} | members)))
    assert source[0].captions == captions and source[0].label == label


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("wds:{d}/{{05..00}}.tar", "counts down"),
        ("csv:", "names no file"),
        ("{d}/p.csv?limit=\u00b2", "limit is a number of samples"),
        ("{d}/empty.csv", "its first line names the columns"),
        ("{d}/header.csv", "has no column 'filepath'"),
        ("{d}/nul.csv", "does not exist"),
    ],
)
def test_more_mistakes_are_one_sentence(tmp_path, spec, sentence):
    (tmp_path / "p.csv").write_text("filepath,title\na,b\n")
    (tmp_path / "nul.csv").write_text("filepath,title\na\0b.jpg,b\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("file,title\n")
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(spec.format(d=tmp_path))
    assert "\n" not in str(caught.value)
