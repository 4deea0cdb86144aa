"""The door: ``crossmodal train | zeroshot | retrieve | compare | results | templates | caption | embed | index | search …``.

Says what may be typed; ``commands/`` does it. A user's mistake is one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from crossmodal import __version__, recipe
from crossmodal.allocator import keep_freed_memory
from crossmodal.commands import captioning, evaluating, exporting, looking, searching, training
from crossmodal.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status (0 well, 2 a user's mistake, 130 interrupted)."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    several = next((getattr(options, name) for name in ("overrides", "pictures") if hasattr(options, name)), None)
    if rest and (several is None or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        several += rest  # argparse takes no KEY=VALUE, and no second PICTURE, after an option
    keep_freed_memory()
    try:
        options.run(options)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process finds the same mistake; one speaks
            print(f"crossmodal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; --resume goes on from the newest checkpoint (train.checkpoint_every says how often one is written)"
        print(f"crossmodal: interrupted{hint if options.run is training.train else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing more to say
        return 141
    except OSError as error:
        if not error.filename:  # not of a file: ours to mend, so with its traceback
            raise
        print(f"crossmodal: {error.filename}: {(error.strerror or str(error)).lower()}.", file=sys.stderr)
        return 2
    finally:
        _leave()
    return 0


def _leave() -> None:
    """Take the process group down in good order, where torch was imported at all."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crossmodal", description="Train paired image and text encoders, and put them to use.")
    parser.add_argument("--version", action="version", version=f"crossmodal {__version__}")
    every = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, about: str, parent=every) -> argparse.ArgumentParser:
        added = parent.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    def uses_model(added: argparse.ArgumentParser) -> None:
        added.add_argument("model", metavar="MODEL", help="a run folder, a checkpoint, open_clip:NAME/TAG or hf:ID")
        added.add_argument("--data", metavar="SOURCE", help="pairs.csv, folder:DIR, shards.tar, wds:{0..9}.tar, emoji:openmoji …")
        added.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="loader processes")
        added.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best there is)")

    train = command("train", training.train, "Train as a recipe says: a YAML file, or the name of a packaged recipe.")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name from: crossmodal recipes list")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.train=my.csv optim.lr=1e-3")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder")
    train.add_argument("--overwrite", action="store_true", help="throw an existing run folder away first")

    def examines(added: argparse.ArgumentParser) -> None:
        added.add_argument("--against", metavar="SOURCE", help="the training data: find test pictures in it, and score without them too")
        added.add_argument(
            "--corrupt", metavar="KIND:1…5", help="spoil the pictures first: noise, blur, contrast, brightness, jpeg, pixels, grey"
        )
        added.add_argument("--store", type=Path, metavar="DIR", help="where embeddings are kept (default: the user's cache folder)")
        added.add_argument(
            "--overwrite",
            choices=("never", "missing", "always"),
            default="missing",
            help="never encodes, but reads the store; encodes what it lacks (default); encodes anew",
        )
        added.add_argument("--output", type=Path, metavar="FILE.json", help="write figures as JSON, every answer as parquet beside it")
        added.add_argument("--report", type=Path, metavar="FILE.html", help="write a page: figures, mistakes, calibration")

    zeroshot = command("zeroshot", evaluating.zeroshot, "Score zero-shot classification on a source with classes, or any benchmark.")
    uses_model(zeroshot)
    zeroshot.add_argument("--benchmark", metavar="NAME", nargs="+", default=[], help="packaged benchmarks or YAML files, instead of --data")
    zeroshot.add_argument(
        "--suite", metavar="NAME", nargs="+", default=[], help="sets of benchmarks: small, imagenet, vtab, retrieval, or a YAML list"
    )
    zeroshot.add_argument("--data-root", metavar="DIR", help="where the benchmarks' data sets stand (default: $CROSSMODAL_DATA, else data)")
    zeroshot.add_argument(
        "--task", default="classification", help="what to ask of --data: classification, multilabel, probe, composition …"
    )
    zeroshot.add_argument("--classes", metavar="FILE", help="class names of --data, one a line, or open_clip:imagenet")
    zeroshot.add_argument(
        "--templates", nargs="+", metavar="T", help="prompts with {}, a file of them, open_clip:openai (default: the model's own)"
    )
    zeroshot.add_argument("--descriptions", metavar="FILE.json", help='sentences about each class instead: {"class": ["…"]}')
    examines(zeroshot)

    retrieve = command("retrieve", evaluating.retrieve, "Score retrieval on pairs: recall@k both ways, with every caption.")
    uses_model(retrieve)
    retrieve.add_argument("-k", type=int, nargs="+", default=[1, 5, 10], metavar="K", help="default: 1 5 10")
    examines(retrieve)

    compare = command("compare", evaluating.compare, "Whether B really beats A: paired tests on the same pictures.")
    compare.add_argument("a", type=Path, metavar="A.json", help="a result that --output wrote")
    compare.add_argument("b", type=Path, metavar="B.json")
    compare.add_argument("--metric", nargs="+", metavar="NAME", help="default: every one that is a share of questions")
    compare.add_argument("--allow", nargs="+", default=[], choices=("prompts", "preprocessing"), help="compare although these differ")
    compare.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON")

    results = command("results", None, "Gather results.").add_subparsers(required=True, metavar="COMMAND")
    table = command("table", evaluating.results_table, "Results as one table, Markdown or CSV.", results)
    table.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="results' JSON files, or folders of them")
    table.add_argument("--csv", action="store_true", help="a line a figure, with its interval")
    table.add_argument("--output", type=Path, metavar="FILE")

    templates = command("templates", None, "Look for good templates.").add_subparsers(required=True, metavar="COMMAND")
    ranks = command(
        "search", evaluating.templates_search, "Rank templates on validation pictures with classes, alone and together.", templates
    )
    uses_model(ranks)
    ranks.add_argument("--templates", nargs="+", required=True, metavar="T", help="prompts with {}, files of them, open_clip:openai")
    ranks.add_argument("--most", type=int, default=8, metavar="N", help="how many together at most (default 8)")
    ranks.add_argument("--output", type=Path, metavar="FILE.txt", help="write those that are best together, one a line")

    caption = command("caption", captioning.caption, "Say what is in pictures, with a model that has a decoder; score that on pairs.")
    uses_model(caption)
    caption.add_argument("pictures", nargs="*", metavar="PICTURE", help="files to caption; or --data, which also scores")
    caption.add_argument("--method", choices=("greedy", "beam", "nucleus"), default="beam", help="the search for words (default beam)")
    caption.add_argument("--beams", type=int, default=5, metavar="N", help="beam: how many go on at each word (default 5)")
    caption.add_argument("--top-p", type=float, default=0.9, metavar="P", help="nucleus: share of the probability drawn from (default 0.9)")
    caption.add_argument("--temperature", type=float, default=1.0, metavar="T", help="nucleus: below 1 is surer (default 1)")
    caption.add_argument("--seed", type=int, default=0, help="nucleus: chance (default 0)")
    caption.add_argument("--max-length", type=int, default=40, metavar="N", help="in tokens, start and end included (default 40)")
    caption.add_argument("--copy-from", metavar="SOURCE", help="score the baseline too: the nearest of these pictures' caption")
    caption.add_argument("--report", type=Path, metavar="FILE.html", help="write a page of 20 pictures and captions")
    caption.add_argument("--output", type=Path, metavar="FILE.json", help="write figures and captions as JSON")

    embed = command("embed", searching.embed, "Encode a source's pictures and captions into a folder; goes on where it broke off.")
    uses_model(embed)
    embed.add_argument("-o", "--out", type=Path, required=True, metavar="EMB", help="the folder to write")

    index = command("index", None, "Build a searchable index.").add_subparsers(required=True, metavar="COMMAND")
    build = command("build", searching.index_build, "Index the pictures of an embeddings folder.", index)
    build.add_argument("embeddings", type=Path, metavar="EMB", help="a folder that crossmodal embed wrote")
    build.add_argument("-o", "--out", type=Path, required=True, metavar="IDX", help="the folder to write")
    build.add_argument(
        "--kind", default="Flat", metavar="FACTORY", help="faiss factory string: Flat is exact (default), HNSW32, IVF1024,Flat …"
    )

    search = command("search", searching.search, "Find pictures by words, or by a picture with --image.")
    search.add_argument("index", type=Path, metavar="IDX", help="a folder that crossmodal index build wrote")
    search.add_argument("text", nargs="?", metavar="TEXT", help="what to look for")
    search.add_argument("--image", type=Path, metavar="FILE", help="look for pictures like this one")
    search.add_argument("-k", type=int, default=10, metavar="K", help="how many (default 10)")
    search.add_argument("--grid", type=Path, metavar="OUT.png", help="write the hits as one picture")
    search.add_argument("--model", metavar="MODEL", help="default: the one the index was built with")
    search.add_argument("--device", default=None)
    search.add_argument("--output", type=Path, metavar="FILE.json", help="write the hits as JSON")

    data = command("data", None, "Look at data, or write them in another format.").add_subparsers(required=True, metavar="COMMAND")
    look = command("inspect", looking.data_inspect, "Read a source through: counts, captions, broken and repeated pictures.", data)
    look.add_argument("data", metavar="SOURCE")
    look.add_argument("--grid", type=Path, metavar="OUT.png", help="write ten examples as one picture")
    look.add_argument("--batch-size", type=int, default=256, metavar="N", help="of the batch to expect repeated captions in (default 256)")
    look.add_argument("--tokenizer", default="clip", metavar="T", help="clip (default) or hf:ID-OR-FOLDER, to count tokens")
    look.add_argument("--context-length", type=int, default=77, metavar="N", help="tokens that a text tower takes (default 77)")
    convert = command("convert", looking.data_convert, "Write a source as tar shards (a folder) or as one .parquet file.", data)
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("out", type=Path, metavar="OUT", help="a folder, or a file that ends in .parquet")
    convert.add_argument("--shard", type=int, default=10_000, metavar="N", help="samples a tar (default 10,000)")

    export = command("export", exporting.export, "Write a model for another library, compared with it there, with a model card.")
    export.add_argument("model", metavar="MODEL", help="a run folder, a checkpoint, open_clip:NAME/TAG or hf:ID")
    export.add_argument("--to", required=True, choices=("open_clip", "transformers", "onnx", "safetensors"))
    export.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    export.add_argument("--push", metavar="USER/NAME", help="upload it to a hub afterwards, with huggingface_hub's token")

    report = command("report", training.report, "Write a run folder's report.html anew.")
    report.add_argument("run_folder", type=Path, metavar="RUN")

    recipes = command("recipes", None, "Look at recipes, copy one, check one.").add_subparsers(required=True, metavar="COMMAND")
    command("list", training.recipes_list, "The packaged recipes, with their first line.", recipes)
    for name, run, about in (
        ("show", training.recipes_show, "Print a recipe as it is written."),
        ("validate", training.recipes_validate, "Check a recipe, overrides included."),
    ):
        added = command(name, run, about, recipes)
        added.add_argument("recipe", metavar="RECIPE")
        added.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    copy = command("copy", training.recipes_copy, "Copy a packaged recipe, to change it.", recipes)
    copy.add_argument("recipe", metavar="RECIPE")
    copy.add_argument("to", type=Path, metavar="FILE.yaml")
    command("schema", lambda o: print(recipe.dump_schema()), "Print the recipes' JSON Schema, for editors.", recipes)
    return parser
