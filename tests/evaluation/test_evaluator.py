"""The evaluator as its users meet it: benchmarks from YAML, results that know what they may be compared with, the store, warnings."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from crossmodal import resources
from crossmodal.cli import main
from crossmodal.data.sources import open_source
from crossmodal.errors import UserError
from crossmodal.evaluation import benchmark, evaluator, result
from crossmodal.evaluation.evaluator import Settings
from crossmodal.evaluation.store import Store
from tests.conftest import COLOURS, SHAPES, encoded, launch, shape, write_tar
from tests.test_model import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with random weights, as a folder that commands load."""
    return saved(tmp_path_factory, 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return saved(tmp_path_factory, 1)


def saved(tmp_path_factory, seed: int):
    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_model().eval().save(folder)
    return folder


def run(*command) -> int:
    return main([str(c) for c in command])


def test_every_packaged_benchmark_and_suite_is_sound():
    for name in resources.listed("eval/benchmarks"):
        entry = benchmark.find(name)
        evaluator.build(entry.task, entry.options)
        found = evaluator.classes(entry)
        assert entry.about and entry.licence and entry.homepage, name
        if found["classes"] and entry.chance:
            assert entry.chance == pytest.approx(1 / len(found["classes"])), name
    for name in resources.listed("eval/suites"):
        for each in benchmark.suite(name):
            benchmark.find(each)
    assert len(evaluator.classes(benchmark.find("imagenet_a"))["classes"]) == 200


def test_mistakes_in_a_benchmark_are_sentences(tmp_path):
    with pytest.raises(UserError, match="did you mean 'openmoji'"):
        benchmark.find("openmojo")
    for text, wanted in (
        ("source: x\ntemplate: [a]\n", "template: did you mean 'templates'"),
        ("task: probe\n", "source: Field required"),
        ("source: x\ntask: probing\n", "no task 'probing'; did you mean 'probe'"),
        ("source: [\n", "is no YAML"),
        ("[1]\n", "a benchmark is a mapping"),
        ("sauce: x\n", "sauce: did you mean 'source'"),
    ):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(UserError, match=wanted):
            benchmark.find(str(tmp_path / "b.yaml"))
    (tmp_path / "b.yaml").write_bytes(b"about: caf\xe9\nsource: x\n")
    for read in (benchmark.find, benchmark.suite):
        with pytest.raises(UserError, match="is no YAML"):
            read(str(tmp_path / "b.yaml"))
    with pytest.raises(UserError, match="no option 'shot'; did you mean 'shots'"):
        evaluator.build("probe", {"shot": [1]})


def test_a_benchmark_takes_a_yaml_file_and_no_python(model, class_folder, tmp_path):
    """Classes with several names in another order, ids, a size, {data}, and a tower that has seen it."""
    (tmp_path / "shapes.yaml").write_text(
        "source: folder:{data}\nclasses: [triangle, [box, square], cross, circle]\ntemplates: ['a {}', 'the {}']\nsize: 13\n"
        "seen: {'*': shapes}\nabout: shapes\n"
    )
    out = tmp_path / "shapes.json"
    assert run("zeroshot", model, "--benchmark", tmp_path / "shapes.yaml", "--data-root", class_folder, "--output", out) == 0
    said = json.loads(out.read_text())
    assert said["labels_by"] == "name" and said["classes"] == 4 and said["dataset"] == "shapes"
    assert any("13 pictures, and 12 were scored" in w for w in said["warnings"])
    assert said["seen"] == []  # nothing pretrained in it
    rows = result.read_rows(out)
    assert len(rows) == 12 and {r["label"] for r in rows if r["key"].startswith("square")} == {1}
    assert said["metrics"]["acc1"] == pytest.approx(sum(r["rank"] == 0 for r in rows) / 12)


def test_a_tower_that_saw_the_benchmark_is_named():
    entry = benchmark.find("imagenet1k")
    model = tiny_model()
    assert entry.seen_by(model) == []
    model.part.image.pretrained = "x.safetensors"
    assert entry.seen_by(model) == [f"the image tower (timm:test_vit x.safetensors) has seen {entry.seen['timm:*']}"]


def test_the_other_tasks_from_yaml(model, class_folder, tmp_path, capsys):
    lines, instances = {}, []
    for n in range(6):
        for k in (0, 1):
            shape(COLOURS[n % 6], SHAPES[k], n).save(tmp_path / f"{n}_{k}.png")
        instances.append(
            {"id": n, **{f"image_{k}": f"{n}_{k}.png" for k in (0, 1)}, **{f"caption_{k}": f"{n} a {SHAPES[k]}" for k in (0, 1)}}
        )
        lines[str(n)] = {"filename": f"{n}_0.png", "caption": f"a {SHAPES[0]}", "negative_caption": f"a {SHAPES[1]}"}
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(x) + "\n" for x in instances))
    (tmp_path / "s.json").write_text(json.dumps(lines))
    for task, source, options, wanted in (
        ("composition", f"winoground:{tmp_path}/w.jsonl", "{}", {"text_acc", "image_acc", "acc"}),
        ("composition", f"sugarcrepe:{tmp_path}/s.json", "{}", {"text_acc"}),
        ("probe", f"folder:{class_folder}", "{k: 2, shots: [1]}", {"knn", "linear_probe", "few_shot_1"}),
    ):
        (tmp_path / "b.yaml").write_text(f"source: {source}\ntask: {task}\noptions: {options}\n")
        assert run("zeroshot", model, "--benchmark", tmp_path / "b.yaml", "--output", tmp_path / "o.json") == 0
        said = json.loads((tmp_path / "o.json").read_text())
        assert set(said["metrics"]) == wanted == set(said["intervals"])


def test_clip_benchmarks_layout(model, tmp_path):
    members = {f"{n}.png": encoded(shape(COLOURS[n % 6], SHAPES[n % 2], n)) for n in range(8)}
    members |= {f"{n}.cls": str(n % 2).encode() for n in range(8)}
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", {k: v for k, v in sorted(members.items()) if int(k[0]) < 5})
    write_tar(tmp_path / "test" / "1.tar", {k: v for k, v in sorted(members.items()) if int(k[0]) >= 5})
    (tmp_path / "test" / "nshards.txt").write_text("2\n")
    (tmp_path / "classnames.txt").write_text("circle\nsquare\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("one {c}\ntwo {c}\n")
    source = open_source(f"clip_benchmark:{tmp_path}")
    assert len(source) == 8 and source.classes == [("circle",), ("square",)] and source.templates == ["one {}", "two {}"]
    assert [source[i].label for i in range(8)] == [n % 2 for n in range(8)]
    assert run("zeroshot", model, "--data", f"clip_benchmark:{tmp_path}", "--output", tmp_path / "o.json") == 0
    assert json.loads((tmp_path / "o.json").read_text())["templates"] == ["one {}", "two {}"]


def test_the_store_encodes_once(model, class_folder, tmp_path, monkeypatch):
    from crossmodal.loading import load

    entry = benchmark.Benchmark(source=str(class_folder))
    first = evaluator.evaluate(Store(load(model), "m", tmp_path / "s"), "x", entry, Settings())
    monkeypatch.setattr("crossmodal.embed.encode", None)  # whoever encodes now, fails
    probe = benchmark.Benchmark(source=str(class_folder), task="retrieval")
    again = evaluator.evaluate(Store(load(model), "m", tmp_path / "s", "never"), "x", entry, Settings(templates=["some {}"]))
    evaluator.evaluate(Store(load(model), "m", tmp_path / "s", "never"), "x", probe, Settings())
    assert first.said["fingerprints"]["prompts"] != again.said["fingerprints"]["prompts"]
    with pytest.raises(TypeError):
        evaluator.evaluate(Store(load(model), "m", tmp_path / "s", "always"), "x", entry, Settings())
    with pytest.raises(UserError, match="--overwrite never encodes none"):
        evaluator.evaluate(Store(load(model), "m", tmp_path / "empty", "never"), "x", entry, Settings())


def test_features_and_embeddings_of_the_same_data_stand_side_by_side(model, class_folder, tmp_path):
    for task in ("probe", "classification", "probe"):
        assert run("zeroshot", model, "--data", class_folder, "--task", task, "--store", tmp_path / "s") == 0


def test_other_data_weights_or_preprocessing_are_other_embeddings(model, other, class_folder, tmp_path):
    from crossmodal.loading import load

    entry, store = benchmark.Benchmark(source=str(class_folder)), tmp_path / "s"
    plain = evaluator.evaluate(Store(load(model), "m", store), "x", entry, Settings()).said["fingerprints"]
    worse = evaluator.evaluate(Store(load(model), "m", store), "x", entry, Settings(corruption="jpeg:5")).said["fingerprints"]
    less = benchmark.Benchmark(source=f"{class_folder}?limit=11")
    fewer = evaluator.evaluate(Store(load(model), "m", store), "x", less, Settings()).said["fingerprints"]
    theirs = evaluator.evaluate(Store(load(other), "m", store), "x", entry, Settings()).said["fingerprints"]
    differ = lambda a: {k for k in a if a[k] != plain[k]}
    assert (differ(worse), differ(fewer), differ(theirs)) == ({"preprocessing"}, {"data"}, {"model"})
    assert len(list(store.glob("*/*/embeddings.json"))) == 4


def test_comparing(model, other, class_folder, pairs, tmp_path, capsys):
    def scored(name, which, *more):
        assert run("retrieve", which, "--data", pairs, "--output", tmp_path / f"{name}.json", *more) == 0
        return tmp_path / f"{name}.json"

    a, b = scored("a", model), scored("b", other)
    capsys.readouterr()
    assert run("compare", a, b, "--output", tmp_path / "c.json") == 0
    found = {each["metric"]: each for each in json.loads((tmp_path / "c.json").read_text())["figures"]}
    for path, side in ((a, "a"), (b, "b")):
        for name, each in found.items():
            assert each[side] == pytest.approx(json.loads(path.read_text())["metrics"][name])
    assert all(0 <= each["p"] <= 1 and each["interval"][0] <= each["difference"] <= each["interval"][1] for each in found.values())
    assert run("compare", a, a, "--output", tmp_path / "c.json") == 0
    assert all(each["p"] == 1 for each in json.loads((tmp_path / "c.json").read_text())["figures"])
    spoilt = scored("spoilt", model, "--corrupt", "blur:3")
    assert run("compare", a, spoilt) == 2
    assert "the preprocessing differ" in capsys.readouterr().err
    assert run("compare", a, spoilt, "--allow", "preprocessing") == 0
    assert run("zeroshot", model, "--data", class_folder, "--output", tmp_path / "z.json") == 0
    assert run("zeroshot", model, "--data", class_folder, "--templates", "x {}", "--output", tmp_path / "t.json") == 0
    assert run("zeroshot", model, "--data", f"{class_folder}?limit=10", "--output", tmp_path / "d.json") == 0
    capsys.readouterr()
    for first, second, wanted in (
        (a, "z", "the tasks differ"),
        (tmp_path / "z.json", "t", "the prompts differ"),
        (tmp_path / "z.json", "d", "the data differ"),
    ):
        assert run("compare", first, tmp_path / f"{second}.json") == 2
        assert wanted in capsys.readouterr().err
    assert run("compare", a, b, "--metric", "acc1") == 2
    assert "acc1: is no share of questions in both" in capsys.readouterr().err


def test_a_table_of_results(model, class_folder, pairs, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert run("zeroshot", model, "--data", class_folder, "--output", tmp_path / "results" / "z.json") == 0
    assert run("retrieve", model, "--data", pairs, "--output", tmp_path / "results" / "r.json") == 0
    capsys.readouterr()
    assert run("results", "table", tmp_path / "results", "--csv") == 0
    csv = capsys.readouterr().out
    assert csv.splitlines()[0] == "dataset,model,pretrained,task,metric,value,low,high,pictures,corruption,prompts,file"
    z = json.loads((tmp_path / "results" / "z.json").read_text())
    assert f"{class_folder},{model},,zeroshot_classification,acc1,{z['metrics']['acc1']:.6f}," in csv
    assert run("results", "table", tmp_path / "results") == 0
    table = capsys.readouterr().out
    assert table.count("\n| ") == 3 and f"| {class_folder} | acc1 |" in table
    assert run("results", "table", tmp_path / "results") == 0
    assert capsys.readouterr().out == table
    assert run("results", "table", tmp_path / "none.json") == 2
    for name, more in (("spoilt", ["--corrupt", "jpeg:3"]), ("other", ["--templates", "x {}"])):
        assert run("zeroshot", model, "--data", class_folder, "--output", tmp_path / "results" / f"{name}.json", *more) == 0
    capsys.readouterr()
    assert run("results", "table", tmp_path / "results") == 0
    told = capsys.readouterr().out
    assert f"| {class_folder} (jpeg:3) | acc1 |" in told and told.count("| acc1 |") == 3, "no result hides another"


def test_a_suite_passes_over_what_is_not_there(model, class_folder, tmp_path, capsys):
    (tmp_path / "here.yaml").write_text("source: folder:{data}\n")
    (tmp_path / "away.yaml").write_text("source: folder:{data}/away\n")
    (tmp_path / "suite.yaml").write_text(f"- {tmp_path}/away.yaml\n- {tmp_path}/here.yaml\n")
    out = tmp_path / "out"
    assert run("zeroshot", model, "--suite", tmp_path / "suite.yaml", "--data-root", class_folder, "--output", out, "--report", out) == 0
    assert "away was passed over" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["here.html", "here.json", "here.parquet"]
    page = (out / "here.html").read_text()
    assert "http://" not in page and "https://" not in page and "Class by class" in page
    (tmp_path / "gone.yaml").write_text("source: folder:{data}/gone\n")
    (tmp_path / "suite.yaml").write_text(f"- {tmp_path}/away.yaml\n- {tmp_path}/gone.yaml\n")
    assert run("zeroshot", model, "--suite", tmp_path / "suite.yaml") == 2
    assert run("zeroshot", model, "--benchmark", tmp_path / "here.yaml", tmp_path / "here.yaml") == 2
    assert "two benchmarks are called 'here'" in capsys.readouterr().err
    (tmp_path / "here.yaml").write_text("source: folder:{data}\nmetric: acc7\n")
    assert run("zeroshot", model, "--benchmark", tmp_path / "here.yaml", "--data-root", class_folder) == 2
    assert "has no figure 'acc7'" in capsys.readouterr().err


def test_permuted_labels_and_chance_are_warned_of(tmp_path):
    """A classifier that is right throughout, on data whose folders carry each other's names."""
    from crossmodal.embed import Embeddings
    from crossmodal.evaluation.tasks.base import Case
    from crossmodal.evaluation.tasks.classification import Classification

    model = tiny_model().eval()
    classes = [(f"class {n}",) for n in range(8)]
    weights = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))[0].T  # [8, 16]
    y = torch.arange(160) % 8
    model.encode_text = lambda texts: weights
    image = torch.nn.functional.normalize(weights[y] + 0.1 * torch.randn(160, 16, generator=torch.Generator().manual_seed(1)), dim=1)

    class Source:
        classes = None

    mixed = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    for labels, wanted in ((y, []), ((y + 1) % 8, ["chance", "another class order"]), (y[mixed], ["chance"])):
        keys = [str(n) for n in range(160)]
        made = Embeddings(image, torch.empty(0, 16), torch.empty(0, dtype=torch.long), list(range(160)), keys, [], labels.tolist())
        case = Case(model, Source(), lambda made=made: made, lambda: None, classes=classes, templates=["{}"])
        found = Classification().answer(case).warnings
        assert len(found) == len(wanted) and all(w in f for w, f in zip(wanted, found, strict=True)), found


def test_two_processes_give_the_same_figures(model, class_folder, tmp_path):
    """150 pictures: three batches, so that the processes' shares are uneven; embeddings bit for bit, written by the first alone."""
    for form in SHAPES:
        (tmp_path / "many" / form).mkdir(parents=True)
    for n in range(150):
        shape(COLOURS[n % 6], SHAPES[n % 4], n).save(tmp_path / "many" / SHAPES[n % 4] / f"{n}.png")
    figures = []
    for processes in (1, 2):
        out, store = tmp_path / f"{processes}.json", tmp_path / f"store{processes}"
        command = ["zeroshot", str(model), "--data", str(tmp_path / "many"), "--workers", "0", "--device", "cpu"]
        done = launch(
            processes, *command, "--store", str(store), "--output", str(out), env={"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(out.read_text())
        assert said["pictures"] == 150
        figures.append((said["metrics"], load_file(next(store.rglob("part-00000.safetensors")))))
    assert figures[0][0] == figures[1][0]
    assert torch.equal(figures[0][1]["image"], figures[1][1]["image"])


def test_corruptions_are_of_the_picture_and_worse_by_severity():
    from crossmodal.data.corruptions import STRENGTHS, Corrupted
    from crossmodal.data.views import EvalView

    view = EvalView(32)
    picture = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(picture.float(), 5, 1, 2).to(torch.uint8)
    whole = view(picture).float()
    for kind in STRENGTHS:
        harm = [(Corrupted(view, f"{kind}:{s}")(picture).float() - whole).square().mean().item() for s in (1, 3, 5)]
        assert 0 < harm[0] < harm[1] < harm[2], (kind, harm)
        assert torch.equal(Corrupted(view, f"{kind}:2")(picture), Corrupted(view, f"{kind}:2")(picture))
    for said, wanted in (("jpg:3", "did you mean 'jpeg'"), ("jpeg", "a severity from 1 to 5"), ("jpeg:6", "a severity from 1 to 5")):
        with pytest.raises(UserError, match=wanted):
            Corrupted(view, said)


def test_results_are_found_where_the_cache_is(model, class_folder):
    assert run("zeroshot", model, "--data", class_folder) == 0
    assert any((resources.PACKAGE.__class__(os.environ["CROSSMODAL_CACHE"]) / "embeddings").rglob("embeddings.json"))


def test_embeddings_from_files(model, pairs, class_folder, tmp_path, capsys):
    """A teacher's files score as the model does that they come from; texts that lack a vector are listed."""
    from safetensors.torch import save_file

    from crossmodal.embed import encode
    from crossmodal.loading import load

    teacher, given = load(model), tmp_path / "given"
    given.mkdir()

    def give(spec, texts):
        found = encode(teacher, open_source(str(spec)))
        texts = list(dict.fromkeys([*texts, *found.captions]))
        for name, names, vectors in (("pictures", found.keys, 3 * found.image), ("texts", texts, teacher.encode_text(texts))):
            save_file({"embeddings": vectors.contiguous()}, given / f"{name}.safetensors")
            (given / f"{name}.json").write_text(json.dumps(names))

    def metrics(command, which, spec):
        assert run(command, which, "--data", spec, "--output", tmp_path / "o.json") == 0
        return {k: v for k, v in json.loads((tmp_path / "o.json").read_text())["metrics"].items() if "ece" not in k and "temp" not in k}

    give(pairs, [])
    assert metrics("retrieve", f"embeddings:{given}", pairs) == pytest.approx(metrics("retrieve", model, pairs))
    give(class_folder, [])
    capsys.readouterr()
    assert run("zeroshot", f"embeddings:{given}", "--data", class_folder) == 2
    assert "lacks 'a photo of a circle.' and 3 more" in capsys.readouterr().err
    give(class_folder, json.loads((given / "missing.json").read_text()))
    mine = metrics("zeroshot", f"embeddings:{given}", class_folder)
    assert run("zeroshot", model, "--data", class_folder, "--templates", "a photo of a {}.", "--output", tmp_path / "m.json") == 0
    theirs = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert mine == pytest.approx({k: theirs[k] for k in mine})
    assert run("zeroshot", f"embeddings:{tmp_path}", "--data", class_folder) == 2
