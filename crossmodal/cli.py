"""The door: ``crossmodal train | zeroshot | retrieve | caption | embed | index | search | report | recipes``.

Says what may be typed; ``commands`` does it. A user's mistake is one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from crossmodal import __version__, commands, recipe
from crossmodal.allocator import keep_freed_memory
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
        print(f"crossmodal: interrupted{hint if options.run is commands.train else ''}", file=sys.stderr)
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

    train = command("train", commands.train, "Train as a recipe says: a YAML file, or the name of a packaged recipe.")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name from: crossmodal recipes list")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.train=my.csv optim.lr=1e-3")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder")
    train.add_argument("--overwrite", action="store_true", help="throw an existing run folder away first")

    zeroshot = command("zeroshot", commands.zeroshot, "Score zero-shot classification on a source with classes.")
    uses_model(zeroshot)
    zeroshot.add_argument("--benchmark", metavar="NAME", help="a packaged benchmark or a YAML file, instead of --data")
    zeroshot.add_argument("--templates", nargs="+", metavar="T", help="prompts with {}, or a file of them (default: the model's own)")
    zeroshot.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON")

    retrieve = command("retrieve", commands.retrieve, "Score retrieval on pairs: recall@k both ways, with every caption.")
    uses_model(retrieve)
    retrieve.add_argument("-k", type=int, nargs="+", default=[1, 5, 10], metavar="K", help="default: 1 5 10")
    retrieve.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON")

    caption = command("caption", commands.caption, "Say what is in pictures, with a model that has a decoder; score that on pairs.")
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

    embed = command("embed", commands.embed, "Encode a source's pictures and captions into a folder; goes on where it broke off.")
    uses_model(embed)
    embed.add_argument("-o", "--out", type=Path, required=True, metavar="EMB", help="the folder to write")

    index = command("index", None, "Build a searchable index.").add_subparsers(required=True, metavar="COMMAND")
    build = command("build", commands.index_build, "Index the pictures of an embeddings folder.", index)
    build.add_argument("embeddings", type=Path, metavar="EMB", help="a folder that crossmodal embed wrote")
    build.add_argument("-o", "--out", type=Path, required=True, metavar="IDX", help="the folder to write")
    build.add_argument(
        "--kind", default="Flat", metavar="FACTORY", help="faiss factory string: Flat is exact (default), HNSW32, IVF1024,Flat …"
    )

    search = command("search", commands.search, "Find pictures by words, or by a picture with --image.")
    search.add_argument("index", type=Path, metavar="IDX", help="a folder that crossmodal index build wrote")
    search.add_argument("text", nargs="?", metavar="TEXT", help="what to look for")
    search.add_argument("--image", type=Path, metavar="FILE", help="look for pictures like this one")
    search.add_argument("-k", type=int, default=10, metavar="K", help="how many (default 10)")
    search.add_argument("--grid", type=Path, metavar="OUT.png", help="write the hits as one picture")
    search.add_argument("--model", metavar="MODEL", help="default: the one the index was built with")
    search.add_argument("--device", default=None)
    search.add_argument("--output", type=Path, metavar="FILE.json", help="write the hits as JSON")

    report = command("report", commands.report, "Write a run folder's report.html anew.")
    report.add_argument("run_folder", type=Path, metavar="RUN")

    recipes = command("recipes", None, "Look at recipes, copy one, check one.").add_subparsers(required=True, metavar="COMMAND")
    command("list", commands.recipes_list, "The packaged recipes, with their first line.", recipes)
    for name, run, about in (
        ("show", commands.recipes_show, "Print a recipe as it is written."),
        ("validate", commands.recipes_validate, "Check a recipe, overrides included."),
    ):
        added = command(name, run, about, recipes)
        added.add_argument("recipe", metavar="RECIPE")
        added.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    copy = command("copy", commands.recipes_copy, "Copy a packaged recipe, to change it.", recipes)
    copy.add_argument("recipe", metavar="RECIPE")
    copy.add_argument("to", type=Path, metavar="FILE.yaml")
    command("schema", lambda o: print(recipe.dump_schema()), "Print the recipes' JSON Schema, for editors.", recipes)
    return parser
