"""Shards at addresses: the same samples as on the disk, each once an epoch, fetched as their turn comes, let go when room is short."""

import http.server
import itertools
import json
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from crossmodal.batch import ViewSpec
from crossmodal.data import remote
from crossmodal.data.convert import convert
from crossmodal.data.loader import TrainingPairs, training_batches
from crossmodal.data.order import Order
from crossmodal.data.sources import open_source
from crossmodal.data.sources.base import Shards
from crossmodal.errors import UserError
from crossmodal.recipe import DataPart
from tests.conftest import COLOURS, encoded, shape, write_tar
from tests.data.test_epochs import draw

SHARDS = (5, 7, 11, 4, 6)


@contextmanager
def served(folder):
    """A folder at a local address; ``asked`` lists the paths that were fetched."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            if self.command == "GET":
                asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """33 samples in five tars and the same in five parquet files; the cache is empty."""
    monkeypatch.setenv("CROSSMODAL_CACHE", str(tmp_path / "cache"))
    folder, numbers = tmp_path / "served", itertools.count()
    folder.mkdir()
    for place, size in enumerate(SHARDS):
        members = {}
        for n in itertools.islice(numbers, size):
            members |= {f"{n:03d}.png": encoded(shape(COLOURS[n % 6], "circle", n)), f"{n:03d}.txt": f"number {n}".encode()}
        convert(open_source(str(write_tar(folder / f"{place}.tar", members))), folder / f"{place}.parquet")
    return folder


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_the_same_samples_as_on_the_disk(shards, ending):
    there = open_source(f"{shards}/{{0..4}}.{ending}")
    with served(shards) as (at, asked):
        source = open_source(f"{at}/{{0..4}}.{ending}")
        assert len(source) == 33 and source.runs.tolist() == np.cumsum(SHARDS).tolist()
        assert [(source[n].image, source[n].captions) for n in range(33)] == [(there[n].image, there[n].captions) for n in range(33)]
        assert [source[n].key for n in range(33)] == [f"{n:03d}" for n in range(33)]
        whole = [path for path in asked if path.endswith(ending)]
        assert len(whole) <= 10, "a shard is fetched once"
        asked.clear()
        assert len(open_source(f"{at}/{{0..4}}.{ending}")) == 33 and not asked, "counts are kept"


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_each_sample_once_an_epoch_stopped_and_resumed(shards, tmp_path, processes, workers):
    with served(shards) as (at, _):
        spec = f"wds:{at}/{{0..4}}.tar"
        steps = draw(spec, processes, workers, 0, 9, tmp_path / "a") + draw(spec, processes, workers, 9, 33, tmp_path / "b")
    keys = [key for step in steps for key in step]
    assert all(Counter(keys[start : start + 33]) == {f"{n:03d}": 1 for n in range(33)} for start in range(0, 33 * 4, 33))


def test_a_lost_shard_is_passed_over_and_said(shards, capsys):
    (shards / "2.tar").unlink()
    with served(shards) as (at, _):
        assert len(open_source(f"wds:{at}/{{0..4}}.tar")) == 33 - 11
        assert "2.tar does not exist; the others are used" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"2\.tar: no such file"):
            open_source(f"wds:{at}/2.tar")
    assert len(open_source(f"wds:{shards}/{{0..4}}.tar")) == 33 - 11
    assert "2.tar does not exist; the others are used" in capsys.readouterr().err
    assert len(open_source(f"wds:{shards}/*.tar")) == 33 - 11


def test_counts_that_writers_leave_beside_are_believed(shards):
    (shards / "sizes.json").write_text(json.dumps({f"{n}.tar": size for n, size in enumerate(SHARDS)} | {"4.tar": 9}))
    (shards / "0_stats.json").write_text(json.dumps({"successes": 5}))
    with served(shards) as (at, asked):
        source = open_source(f"wds:{at}/{{0..4}}.tar")
        assert len(source) == 36 and not [path for path in asked if path.endswith("tar")]
        assert source[32].captions == ("number 32",)
        with pytest.raises(OSError, match="holds 6 samples, where 8 or more were expected"):
            _ = source[34]


def test_room_is_made_and_what_was_let_go_comes_again(shards, monkeypatch):
    size = (shards / "0.tar").stat().st_size
    monkeypatch.setenv("CROSSMODAL_CACHE_GB", str(2.5 * size / 1e9))
    with served(shards) as (at, asked):
        source = open_source(f"wds:{at}/{{0..4}}.tar")
        source.OPEN = 1
        for _ in range(2):
            assert [source[n].captions for n in range(33)] == [(f"number {n}",) for n in range(33)]
        assert Counter(asked)["/0.tar"] >= 2
    kept = [file for file in (remote.Kept().root).rglob("*.tar")]
    assert sum(file.stat().st_size for file in kept) <= 2.5 * size or len(kept) == 1


def test_what_is_announced_is_fetched_before_it_is_asked_for(shards):
    (shards / "sizes.json").write_text(json.dumps({f"{n}.tar": size for n, size in enumerate(SHARDS)}))
    with served(shards) as (at, asked):
        source = open_source(f"wds:{at}/{{0..4}}.tar")
        source.soon(20)
        source.kept._ahead.join(10)
        assert [path for path in asked if path.endswith(".tar")] == ["/2.tar"]
        assert source[20].captions == ("number 20",) and source.kept.place(f"{at}/2.tar").is_file()


def test_a_file_that_changed_is_fetched_anew_and_one_that_is_no_tar_does_not_stay(shards):
    with served(shards) as (at, _):
        assert open_source(f"wds:{at}/0.tar")[0].captions == ("number 0",)
        shutil.copy(shards / "2.tar", shards / "0.tar")
        source = open_source(f"wds:{at}/0.tar")
        assert len(source) == 11 and source[0].captions == ("number 12",)
        (shards / "9.tar").write_text("<html>busy</html>" * 100)
        with pytest.raises(UserError, match=rf"{at}/9\.tar: not a whole tar file"):
            open_source(f"wds:{at}/9.tar")
        shutil.copy(shards / "4.tar", shards / "9.tar")
        assert len(open_source(f"wds:{at}/9.tar")) == 6
        with pytest.raises(UserError, match="is not parquet"):  # a count of one format is none of another's
            open_source(f"parquet:{at}/0.tar")


def test_a_shard_that_vanishes_costs_its_own_samples_only(shards, tmp_path):
    with served(shards) as (at, _):
        spec = f"wds:{at}/{{0..4}}.tar"
        assert len(open_source(spec)) == 33
        shutil.rmtree(next(f for f in (tmp_path / "cache" / "shards").glob("*") if (f / "2.tar").is_file()))
        (shards / "2.tar").unlink()
        data = DataPart(image_size=16, batch_size=11, workers=0)
        source = Shards(
            "tar", "x", [f"{at}/{n}.tar" for n in range(5)], lambda f: open_source(str(f)), lambda a: dict(enumerate(SHARDS))[int(a[-5])]
        )
        pairs = TrainingPairs(source, {"image": ViewSpec("image"), "text": ViewSpec("text")}, data, "shortest", 0)
        seen = list(training_batches(pairs, source, data, lambda texts: torch.zeros(len(texts), 1), 0, 0, 3))
    lost = {f"{n:03d}" for n in range(12, 23)}
    keys = Counter(key for batch in seen for key in batch.keys)
    assert not keys.keys() & lost and set(keys) == {f"{n:03d}" for n in range(33)} - lost
    assert any("404" in why for batch in seen for _, why in batch.broken)


def test_an_address_keeps_its_own_query(shards):
    with served(shards) as (at, asked):
        assert len(open_source(f"wds:{at}/0.tar?X-Sig=abc&limit=3")) == 3
        assert asked == ["/0.tar?X-Sig=abc"] or "/0.tar?X-Sig=abc" in asked


def test_a_connection_that_breaks_off_leaves_nothing(tmp_path):
    class Short(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x" * 40)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pauses = []
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="60 bytes before its end"):
            patch.setattr(remote.time, "sleep", pauses.append)
            remote.copy(f"http://127.0.0.1:{server.server_port}/a.tar", tmp_path / "a.tar")
        server.shutdown()
    assert pauses == [1, 3] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("nosuch://bucket/a.tar", "nosuch"),
        ("http://127.0.0.1:9/a.tar", "refused"),
        ("wds:memory://none/a.tar", "no such file"),
        ("hf:{d}?streaming=yes", "say true or false"),
        ("hf:{d}?streaming=true", "only parquet and tar can be streamed"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, address, sentence):
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(address.format(d=tmp_path))
    assert "\n" not in str(caught.value)


def test_other_schemes_go_through_fsspec(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    for n in range(2):
        memory.pipe(f"/bucket/{n}.tar", (shards / f"{n}.tar").read_bytes())
    for spec in ("wds:memory://bucket/{0..1}.tar", "wds:memory://bucket/*.tar"):
        source = open_source(spec)
        assert [source[n].captions for n in range(12)] == [(f"number {n}",) for n in range(12)]
    memory.pipe("/bucket/1.tar", (shards / "2.tar").read_bytes())
    source = open_source("wds:memory://bucket/{0..1}.tar")
    assert source[5].captions == ("number 12",), "a file that changed is fetched anew"


def test_a_data_set_of_the_library_streams(shards):
    with tempfile.TemporaryDirectory() as folder:  # the library reads a split from folders' names, and pytest's say "test"
        for n in range(2):
            shutil.copy(shards / f"{n}.parquet", f"{folder}/train-{n:05d}.parquet")
        source = open_source(f"hf:{folder}?streaming=true")
        assert len(source) == 12 and source.runs.tolist() == [5, 12]
        assert [source[n].captions for n in range(12)] == [(f"number {n}",) for n in range(12)]
        with pytest.raises(UserError, match="has no split 'val'"):
            open_source(f"hf:{folder}?streaming=true&split=val")


@pytest.mark.parametrize("runs", [[1000 * n for n in range(1, 41)], [3, 4, 10, 500, 501, 1700]])
def test_an_order_of_runs_is_an_order_that_stays_near(runs):
    order = Order(runs[-1], 0, np.array(runs))
    for epoch in range(2):
        drawn = [order[epoch * runs[-1] + n] for n in range(runs[-1])]
        assert sorted(drawn) == list(range(runs[-1]))
    if len(runs) == 40:
        of = [torch.bucketize(torch.tensor(drawn[n : n + 1000]), torch.tensor(runs), right=True).unique() for n in range(0, 40000, 1000)]
        assert max(map(len, of)) <= 3 * order.lanes, "few shards at a time"
        assert min(map(len, of)) >= order.lanes, "but samples of many"
        assert drawn != [order[n] for n in range(runs[-1])]


def test_a_mixture_keeps_the_runs_of_its_parts(shards, tmp_path):
    with served(shards) as (at, _):
        here = f"wds:{shards}/{{0..1}}.tar"
        source = open_source(f"mix:2*{at}/{{2..3}}.tar+{here}+0.5*{at}/4.tar")
        assert source.runs.tolist() == [11, 15, 26, 30, 37, 42, 45] and len(source) == 45
        assert source[26].captions == ("number 23",) and source[30].captions == ("number 0",)
        source.soon(3)
        assert open_source(f"{at}/{{0..4}}.tar?limit=9").runs.tolist() == [5, 9]
