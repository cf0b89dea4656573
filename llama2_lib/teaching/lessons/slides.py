"""Slide decks from the executed notebooks: reveal.js, everything beside the deck, no network."""

import shutil
from pathlib import Path

from nbconvert import SlidesExporter
from traitlets.config import Config

from llama2_lib.storage import write_atomically
from llama2_lib.teaching.lessons.source import Names, read_notebook, sources

PACKAGES = "reveal.js@4.6.1 mathjax@2.7.9 requirejs@2.3.8 jquery@3.8.0"
COPIED = {  # folder of node_modules -> what a deck needs of it
    "reveal.js": ("dist", "plugin"),
    "mathjax": (
        "MathJax.js",
        "config/TeX-AMS_CHTML-full.js",
        "config/Safe.js",
        "extensions",
        "jax/element",
        "jax/input/TeX",
        "jax/output/CommonHTML",
        "fonts/HTML-CSS/TeX/woff",
    ),
    "requirejs": ("require.js",),
    "jquery": ("dist/jquery.min.js",),
}
CONFIG = Config(
    SlidesExporter={
        "reveal_url_prefix": "assets/reveal.js",
        "reveal_theme": "white",  # the default one imports fonts from the network
        "require_js_url": "assets/requirejs/require.js",
        "jquery_url": "assets/jquery/dist/jquery.min.js",
        "mathjax_url": "assets/mathjax/MathJax.js?config=TeX-AMS_CHTML-full,Safe",
        "exclude_input_prompt": True,
        "exclude_output_prompt": True,
    },
    TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}},
)
TEMPLATES = Path(__file__).with_name("templates")


def slides(
    names: Names = (),
    /,
    *,
    folder: Path = Path("notebooks"),
    out: Path = Path("build/slides"),
    assets: Path = Path("build/assets"),
) -> list[str]:
    """Write `out`/NAME.slides.html from the cells that carry a slide type."""
    notebooks = [folder / f"{path.stem}.ipynb" for path in sources(folder, names)]
    if missing := [str(path) for path in notebooks if not path.exists()]:
        raise FileNotFoundError(f"decks are made from built notebooks; missing: {missing}.")
    _copy_assets(assets / "node_modules", out / "assets")
    exporter = SlidesExporter(
        config=CONFIG, template_name="course_reveal", extra_template_basedirs=[str(TEMPLATES)]
    )
    faults = []
    for path in notebooks:
        notebook = read_notebook(path)
        if not any("slideshow" in cell.metadata for cell in notebook.cells):
            faults.append(f"{path.stem}: no cell has a slide type, so there is no deck")
            continue
        for cell in notebook.cells:  # a cell without a slide type is only in the notebook
            cell.metadata.setdefault("slideshow", {"slide_type": "skip"})
        html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        write_atomically(out / f"{path.stem}.slides.html", html)
    print(f"{len(notebooks) - len(faults)} decks in {out}")
    return faults


def _copy_assets(installed: Path, out: Path) -> None:
    for package, parts in COPIED.items():
        for part in parts:
            source, target = installed / package / part, out / package / part
            if not source.exists():
                raise FileNotFoundError(
                    f"decks need {source}. With the network, once:\n"
                    f"  npm install --prefix {installed.parent} {PACKAGES}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
