"""What decides the content of an artifact, so that its name can say so: settings that cannot hide.

An artifact of a stage is named after:

- the sections of the recipe that the stage reads (it sees no others, see `visible`);
- every UPPER_CASE constant of the modules that its file imports, directly or through others;
- the code of the world's writers, up to names and comments, and their word lists: what they write
  is what is learned. It names the tokenizer, and through it all stages after;
- the files of a folder of the reader's own, where the corpus is one.

A new name of a function, a comment or a moved constant changes none of these. What they cannot
see is a change of code outside the world: another loss is another chain under the same name.
"""

import ast
import copy
import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from llama2_lib import storage
from llama2_lib.config import Recipe
from llama2_lib.text.files import is_safety_path, text_files
from llama2_lib.world.lexicon import lexicon_folder

PACKAGE = Path(__file__).parents[1]
OUTSIDE = ("config", "storage", "device", "evaluation", "stages.folder")
"""Modules that hold no settings of training: a config counts by the values of a recipe, and what
evaluation says of a model changes no weight of it. How a folder is read names its tokenizer and
corpus, which every stage needs; from a world it reads nothing."""
WORLD_ASIDE = ("audit", "manifest")
"""Files of the world that look at its texts and write none."""
OF_ONE_STAGE = ("dates", "tools")
"""Files of the world that write for single stages: they name those, and not the tokenizer."""
NO_LISTS = ("samples", "release")
"""Folders of `data/` whose texts the world does not read: they were made with it."""


# --- modules


@cache
def modules(stage_file: str) -> tuple[str, ...]:
    """Return the modules of the library that `stage_file` imports, directly or through others."""
    names, waiting = set[str](), [stage_file]
    while waiting:
        name = waiting.pop()
        if name not in names and not {name.split(".")[1], name.split(".", 1)[1]} & {*OUTSIDE}:
            names.add(name)
            waiting += _imported(name)
    return tuple(sorted(names))


@cache
def _imported(name: str) -> list[str]:
    """Return the library's modules that one module imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(_source(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llama2_lib"):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if "." in name and _source(name).is_file()]


def _source(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def constants(names: tuple[str, ...], of: Callable[[str], list[str]]) -> list[str]:
    """Return every UPPER_CASE value of these modules, by its name, wherever it stands."""
    return sorted({each for name in names for each in of(name)})


def constants_of(module: str) -> list[str]:
    """Return the UPPER_CASE values of one module, each with its name, as JSON."""
    return [
        json.dumps([key, _plain(value)], sort_keys=True)
        for key, value in vars(import_module(module)).items()
        if key.isupper() and key != "TYPE_CHECKING" and is_setting(value)
    ]


def is_setting(value: object) -> bool:
    """Return whether a constant is a value, rather than a type, a function or a place on disk."""
    return not (callable(value) or isinstance(value, Path | types.ModuleType | types.GenericAlias))


def _plain(value: object) -> Any:
    """Return a value as JSON can hold it; what it cannot hold counts by its representation."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=repr)
    if callable(value):
        return "code"  # its representation holds an address
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


# --- the world: its writers and their words


def world_fingerprint() -> str:
    """Return a fingerprint of all that the world can write, and of the words that it reads.

    The world is one source: nobody can say of a stage which of its writers it could do without.
    """
    aside = (*WORLD_ASIDE, *OF_ONE_STAGE)
    files = [path for path in (PACKAGE / "world").glob("*.py") if path.stem not in aside]
    data = lexicon_folder().parent
    lists = {path.relative_to(data): path for path in sorted(data.rglob("*.txt"))}
    words = {
        str(name): _content(path, path.stat().st_mtime_ns)
        for name, path in lists.items()
        # A hidden folder is half of a release, or an editor's.
        if name.parts[0] not in NO_LISTS and not name.parts[0].startswith(".")
    }
    return storage.fingerprint([sorted(_content(p, p.stat().st_mtime_ns) for p in files), words])


def own_writers(names: tuple[str, ...]) -> list[str]:
    """Return fingerprints of the writers among these modules that write for single stages."""
    paths = [_source(f"llama2_lib.world.{stem}") for stem in OF_ONE_STAGE]
    return [
        _content(path, path.stat().st_mtime_ns)
        for path in paths
        if f"llama2_lib.world.{path.stem}" in names
    ]


@cache
def _content(path: Path, _changed_at: int) -> str:
    """Return a fingerprint of a writer's code, or of a list's words."""
    if path.suffix == ".py":
        return code_fingerprint(path.read_text(encoding="utf-8"))
    return storage.file_sha256(path)


def code_fingerprint(source: str) -> str:
    """Return a fingerprint of what a module does: names, comments and docstrings do not count.

    Names are numbered in the order of their first appearance, so that an exchange of two counts.
    What only people read (docstrings, annotations, messages of errors) is left out, and so are
    imports, whose order follows names.
    """
    return storage.fingerprint(_spelled(ast.parse(source), {}))


def _spelled(node: object, numbers: dict[str, int]) -> Any:
    if isinstance(node, list):
        parts = [_spelled(each, numbers) for each in node]
        return [part for part in parts if part is not None]
    if not isinstance(node, ast.AST):
        return repr(node)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.expr_context):
        return None
    spelled: list[Any] = [type(node).__name__]
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or value is None or value == []:
            continue  # empty fields differ between versions of Python
        if field in ("id", "arg", "attr", "name") and isinstance(value, str):
            spelled.append(numbers.setdefault(value, len(numbers)))
        elif (part := _spelled(value, numbers)) is not None:
            spelled.append([field, part])
    return spelled


# --- the recipe


def sections(recipe: Recipe, reads: tuple[str, ...]) -> dict[str, Any]:
    """Return the sections of a recipe that a stage reads, as JSON can hold them."""
    document: dict[str, Any] = {}
    for name in reads:
        section = getattr(recipe, name)
        document[name] = None if section is None else dataclasses.asdict(section)
    if "corpus" in document and recipe.corpus.data is not None:
        # what the files of the reader's own folder hold; of their names counts one word
        folder = Path(recipe.corpus.data)
        files = text_files(folder)
        named = [storage.file_sha256(p) + " safety" * is_safety_path(folder, p) for p in files]
        document["corpus"] |= {"data": named}
    return document


def visible(recipe: Recipe, reads: tuple[str, ...], stage: str) -> Recipe:
    """Return the recipe with the sections alone that name the stage or one of its inputs.

    A stage that reads another would depend on numbers that its name does not tell.
    """
    shown = copy.copy(recipe)
    for field in dataclasses.fields(Recipe):
        if field.name not in ("name", *reads):
            object.__setattr__(shown, field.name, _Hidden(stage, field.name))
    return shown


class _Hidden:
    """A section that a stage did not say it reads."""

    def __init__(self, stage: str, section: str) -> None:
        self._words = f"the stage {stage} reads `{section}`, which is not among its `reads`"

    def __getattr__(self, name: str) -> Any:
        raise LookupError(f"{self._words}. Add it there, so that its numbers name the artifact.")
