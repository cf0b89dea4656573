"""Settings that cannot hide: whatever decides what is trained is in the name of what is trained.

Settings are found by walking the configs and the modules, not by a list: a new one is tested here
without anybody's doing.
"""

import ast
import copy
import dataclasses
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.config import RewardVariant, SafetyData
from llama2_lib.pipeline import settings
from llama2_lib.pipeline.graph import needed, visible_recipe
from llama2_lib.recipes import grid, nano, toy

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
STAGES = pipeline.STAGES
WORLD = sorted((ROOT / "llama2_lib" / "world").glob("*.py"))


def whole():
    """The recipe toy with the two variants, so that every stage has all that it reads."""
    pairs = dataclasses.replace(toy().helpfulness, n_fresh=0, n_fresh_later=0)
    return dataclasses.replace(
        toy(),
        reward_model=RewardVariant(reward=pairs, own_share=0.9, n_safety=5),
        safety_data=SafetyData(fraction=0.5, n_helpful=30, n_safety=20),
    )


def prints(recipe):
    names = {}
    for stage in reversed(STAGES):  # the last first: they name what they need
        if stage not in names:
            names |= pipeline.fingerprints(stage, recipe)
    return names


def renamed(before, after):
    return {stage for stage in STAGES if before[stage] != after[stage]}


def after(stages):
    """These stages and all that need them."""
    return {stage for stage in STAGES if set(needed(stage)) & set(stages)}


@pytest.fixture(scope="module")
def seen():
    """The constants of every stage's modules, the world, and the names of toy's stages."""
    stages = {settings.modules(node.module) for node in STAGES.values()}
    constants = {modules: settings.constants(modules, settings.constants_of) for modules in stages}
    return constants, settings.world_fingerprint(), prints(whole())


@pytest.fixture
def quick(monkeypatch, seen):
    """Look at constants and at the world once, for tests that change only recipes."""
    constants, world, names = seen
    monkeypatch.setattr(settings, "constants", lambda names, of: constants[names])
    monkeypatch.setattr(settings, "world_fingerprint", lambda: world)
    return names


# --- settings in configs


def fields(config, path=()):
    """Yield the path of every field of a config, and of the configs that it holds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, (*path, field.name))
        else:
            yield (*path, field.name)


SETTINGS = [path for path in fields(whole()) if path not in {("name",), ("corpus", "data")}]


def another(value):
    """A value of another kind or size; whether it is sensible does not matter here."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    return ("another",) if isinstance(value, tuple) else "another"


def with_another(config, path):
    """A copy of a config in which one setting is another, past all validation."""
    changed = copy.copy(config)
    value = getattr(config, path[0])
    value = with_another(value, path[1:]) if path[1:] else another(value)
    object.__setattr__(changed, path[0], value)
    return changed


@pytest.mark.parametrize("path", SETTINGS, ids=".".join)
def test_every_setting_of_a_config_renames_the_stages_that_read_it_and_all_after(quick, path):
    readers = {stage for stage, node in STAGES.items() if path[0] in node.reads}
    if path == ("corpus", "n_validation"):
        readers.remove("tokenizer")  # learns from training documents alone
    assert readers
    assert renamed(quick, prints(with_another(whole(), path))) == after(readers)


def test_every_section_of_a_recipe_is_read_by_a_stage():
    sections = {field.name for field in dataclasses.fields(whole())} - {"name"}
    assert {section for node in STAGES.values() for section in node.reads} == sections
    assert len(SETTINGS) > 150


def test_a_stage_sees_no_section_that_does_not_name_it():
    recipe = visible_recipe("sft", whole())
    assert recipe.sft == whole().sft
    assert recipe.pretrain == whole().pretrain  # names an input
    with pytest.raises(LookupError, match="the stage sft reads `ppo`, which is not among"):
        recipe.ppo.beta  # noqa: B018


def test_the_name_of_a_recipe_changes_nothing(quick):
    assert prints(dataclasses.replace(whole(), name="other")) == quick == prints(whole())


def test_grids_share_the_texts_of_nano(quick):
    assert renamed(prints(grid()), prints(nano())) == after({"pretrain"})
    assert renamed(prints(grid()), prints(grid(3))) == after({"pretrain"})


def test_the_tokenizer_depends_on_the_documents_it_reads_only(quick):
    corpus = dataclasses.replace(nano().corpus, n_documents=50_000)
    many = dataclasses.replace(nano(), corpus=corpus)
    assert renamed(prints(nano()), prints(many)) == set(STAGES) - {"tokenizer"}


# --- settings beside the code


CONSTANTS = sorted(
    {
        (module, name)
        for node in STAGES.values()
        for module in settings.modules(node.module)
        for name, value in vars(import_module(module)).items()
        if name.isupper() and name != "TYPE_CHECKING" and settings.is_setting(value)
    }
)


@pytest.fixture(scope="module")
def values():
    """The constants of every module."""
    modules = {module for node in STAGES.values() for module in settings.modules(node.module)}
    return {module: settings.constants_of(module) for module in modules}


@pytest.mark.parametrize(("module", "name"), CONSTANTS, ids=lambda part: part.split(".", 1)[-1])
def test_every_constant_renames_the_stages_that_import_it_and_all_after(
    monkeypatch, seen, values, module, name
):
    _, world, before = seen
    monkeypatch.setattr(settings, "world_fingerprint", lambda: world)
    now = getattr(import_module(module), name)
    other = 1_234_567 if isinstance(now, int) else ["another"]
    monkeypatch.setattr(import_module(module), name, other)
    changed = values | {module: settings.constants_of(module)}
    monkeypatch.setattr(settings, "constants_of", changed.__getitem__)
    readers = {s for s, node in STAGES.items() if module in settings.modules(node.module)}
    assert renamed(before, prints(whole())) == after(readers)


def test_what_the_world_writes_does_not_depend_on_what_its_name_leaves_out():
    """A rule that stood in a file of WORLD_ASIDE could change marks and labels unseen."""
    aside = {f"llama2_lib.world.{stem}" for stem in settings.WORLD_ASIDE}
    for path in WORLD:
        if path.stem not in settings.WORLD_ASIDE:
            module = f"llama2_lib.world.{path.stem}".removesuffix(".__init__")
            assert not aside & set(settings.modules(module)), path.name


def test_the_numbers_that_hid_are_among_them():
    """Fourteen that moved no name at first, wherever they stand now."""
    names = {name for _, name in CONSTANTS}
    assert names >= {
        "MIXED_IN", "DOCUMENTS", "LOOK_ALIKES", "OWN_SHARES", "TEMPERATURE", "HELD_BACK",
        "N_CENTRE", "OWN_SHARE", "TEMPERATURES", "SAFETY_STREAM", "SHORT_TURNS", "HEED_SHARES",
        "SAFETY_LOGIT",
        "MARGINS",
    }  # fmt: skip
    assert len(CONSTANTS) > 150


NO_DIALS = {
    "corpus.py", "weights.py", "config.py", "job.py",  # nothing there is drawn or trained
    "lr_at", "kl_estimates", "ppo_value_loss", "pairwise_accuracy", "attention_weights",  # formulas
    "scalar_model", "initialise",  # exponents: one over the root of a width
    "adamw", "warmup_then_cosine", "gae", "ppo_policy_loss",  # defaults, which a config replaces
    "whiten", "explained_variance", "sample",  # guards against a division by 0
    "variant_pairs",  # a coin
    "run", "teacher", "_taught", "_teach",  # parts of the progress bar
}  # fmt: skip
"""Files and functions of training in which a number may stand, and why."""


def test_no_number_hides_in_a_function():
    """A dial in a body is seen by no fingerprint: it must have a name in capitals."""
    hidden = [
        f"{path.name}: {function.name}: {node.value}"
        for folder in ("stages", "objectives", "training", "model", "text")
        for path in sorted((ROOT / "llama2_lib" / folder).glob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and not {path.name, function.name} & NO_DIALS
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and type(node.value) is float
        if node.value not in (0.0, 1.0)
    ]
    assert hidden == []


def test_constants_of_all_kinds_are_spelled_and_none_by_its_address():
    spelled = [text for module, _ in CONSTANTS for text in settings.constants_of(module)]
    assert not [text for text in spelled if " at 0x" in text]
    assert settings.constants_of("llama2_lib.stages.reward") != []


def test_evaluation_names_no_artifact():
    modules = {module for node in STAGES.values() for module in settings.modules(node.module)}
    assert not [module for module in modules if module.startswith("llama2_lib.evaluation")]
    assert "llama2_lib.objectives.rlhf" in modules
    assert "llama2_lib.stages.rehearsal" in settings.modules("llama2_lib.stages.red_team")


@pytest.mark.slow
def test_fingerprints_are_the_same_in_another_process():
    code = (
        "import json; from llama2_lib import pipeline; from llama2_lib.recipes import toy; "
        "print(json.dumps({s: pipeline.fingerprint(s, toy()) for s in pipeline.STAGES}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "12", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert json.loads(output) == prints(toy())


# --- the world: code and words


class Renamed(ast.NodeTransformer):
    """Gives every name another, and drops docstrings and annotations."""

    def visit(self, node):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(getattr(node, field, None), str) and not isinstance(node, ast.alias):
                setattr(node, field, f"{getattr(node, field)}_by_another_name")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("Another docstring.")
        return self.generic_visit(node)


@pytest.mark.parametrize("path", WORLD, ids=lambda path: path.stem)
def test_new_names_comments_and_docstrings_of_a_writer_rename_nothing(path):
    source = path.read_text()
    other = ast.unparse(Renamed().visit(ast.parse(source)))  # unparsing drops comments and layout
    assert len(source) < 50 or other != source
    assert settings.code_fingerprint(other) == settings.code_fingerprint(source)


class Changed(ast.NodeTransformer):
    """Changes the first number, or the first text where there is none, of what is no docstring."""

    def __init__(self, kind):
        self.kind, self.done = kind, False

    def visit_Expr(self, node):
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Constant(self, node):
        if not self.done and type(node.value) is self.kind:
            self.done = True
            return ast.Constant(
                node.value + node.value if node.value else node.value + self.kind("1")
            )
        return node


@pytest.mark.parametrize("kind", [int, float, str])
@pytest.mark.parametrize("path", WORLD, ids=lambda path: path.stem)
def test_another_number_or_text_in_a_writer_renames_it(path, kind):
    change = Changed(kind)
    other = ast.unparse(change.visit(ast.parse(path.read_text())))
    same = settings.code_fingerprint(other) == settings.code_fingerprint(path.read_text())
    assert same is not change.done


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("def f(a, b):\n    return a - b", "def f(a, b):\n    return b - a"),
        ("x = a < b", "x = a <= b"),
        ("if a:\n    f()", "if not a:\n    f()"),
        ("f(1, n=2)", "f(2, n=1)"),
        ("x = (1, 2)", "x = [1, 2]"),
    ],
)
def test_what_a_writer_does_counts(source, other):
    assert settings.code_fingerprint(source) != settings.code_fingerprint(other)
    assert settings.code_fingerprint(source) == settings.code_fingerprint(f"# a remark\n{source}")


def test_an_edited_word_renames_everything(tmp_path, monkeypatch, quick):
    monkeypatch.undo()
    before = prints(toy())
    data = copytree(settings.lexicon_folder().parent, tmp_path / "data")
    monkeypatch.setattr(settings, "lexicon_folder", lambda: data / "lexicon")
    assert prints(toy()) == before
    for path in (data / "lexicon" / "foods.txt", data / "red_team" / "attacks.txt"):
        path.write_text(path.read_text() + "# a remark\n")
        now = prints(toy())
        assert renamed(before, now) == set(STAGES)
        before = now
    for folder in ("samples", "release", ".release"):
        (data / folder).mkdir(exist_ok=True)
        (data / folder / "more.txt").write_text("a text to read")
    assert prints(toy()) == before


# --- a folder of the reader's own


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"text number {i}")
    return folder


def on(folder):
    corpus = dataclasses.replace(toy().corpus, data=str(folder))
    return dataclasses.replace(toy(), corpus=corpus)


def test_texts_of_a_folder_count_by_their_bytes_and_not_by_where_they_lie(texts, tmp_path, quick):
    before = prints(on(texts))
    moved = copytree(texts, tmp_path / "elsewhere")
    assert prints(on(moved)) == before
    (moved / "3.txt").write_text("text number three")
    assert renamed(before, prints(on(moved))) == set(STAGES)
    (texts / "5.jsonl").write_text('{"text": "one more"}\n')
    assert renamed(before, prints(on(texts))) == set(STAGES)
