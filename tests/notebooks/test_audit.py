import nbformat
import pytest

from llama2_lib.teaching.lessons import check
from llama2_lib.teaching.lessons.audit import lesson_faults


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def forget_to_run(notebook):
    code(notebook)[3].execution_count = None


def strip(notebook):
    for cell in code(notebook):
        cell.execution_count, cell.outputs = None, []


def change_kernel(notebook):
    notebook.metadata.kernelspec.name = "conda-env-mine"


def edit_by_hand(notebook):
    code(notebook)[1].source += "\n# quick fix"


def run_out_of_order(notebook):
    first, second = code(notebook)[:2]
    first.execution_count, second.execution_count = second.execution_count, first.execution_count


def of_another_chain(notebook):
    notebook.metadata.made_from = notebook.metadata.made_from | {"chain": "000000000000"}


def stores(kind, **values):
    """Add an output to a cell."""
    output = nbformat.v4.new_output(kind, **values)
    return lambda notebook: code(notebook)[2].outputs.append(output)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (forget_to_run, "90_sample-007 was never run"),
        (strip, "was never run"),
        (change_kernel, "kernelspec"),
        (edit_by_hand, "stale"),
        (stores("error", ename="E", evalue="e", traceback=[]), "not tagged raises-exception"),
        (stores("stream", text="<object object at 0x7f3a1c0b5d30>"), "address of an object"),
        (stores("stream", text="saved in /home/ann/course"), "folder of one machine"),
        (stores("stream", text="more than half: True\nloss 1.2\n"), "'more than half: True'"),
        (stores("execute_result", data={"text/plain": "False"}), "print the number"),
        (run_out_of_order, "several executions"),
        (of_another_chain, "its outputs are of {'chain': '000000000000'"),
    ],
)
def test_a_planted_fault_in_a_notebook_is_found(course, edit, change, fault):
    edit(course / "90_sample.ipynb", change)
    faults = check(folder=course)
    assert faults
    assert all(line.startswith("90_sample: ") for line in faults)
    assert any(fault in line for line in faults)


def test_stale_missing_and_orphaned_notebooks_are_found(course):
    source = course / "src" / "90_sample.py"
    source.write_text(source.read_text().replace("temperature=1.0", "temperature=2.0"))
    assert "stale" in check(folder=course)[0]
    source.rename(source.with_name("94_renamed.py"))
    missing, orphan = check(folder=course)
    assert missing.startswith("94_renamed: the notebook is missing")
    assert orphan.startswith("90_sample: no source")


LONG = "x = [\n" + "    0,\n" * 30 + "]\n"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    ### END SOLUTION\n", "", "half a solution marker"),
        ("    ### BEGIN SOLUTION\n", "", "half a solution marker"),
        ("    ### ", "### ", "outside a function"),
        ("scores = np.array", LONG + "scores = np.array", "lines; at most 25"),
        ('tags=["raises-exception"]', 'tags=["raise-exception"]', "unknown tags"),
        ('tags=["raises-exception"]', 'tags=["nbval-skip"]', "go together"),
        ("# # Temperature\n", "# Temperature\n", "a title"),
        ("be able to explain", "see", "'be able to explain'"),
        ("Prerequisites", "Before", "'Prerequisites'"),
        ("Paper sections", "Sections", "'Paper sections'"),
        ("**Minutes:** 1", "Quick:", "'Minutes'"),
        ("# ## Next\n", "# Next\n", "'## Next'"),
        ("# ## Questions to think about\n", "# ## Thoughts\n", "'## Questions"),
        ("# ### Exercise 3", "# Exercise 3", "three to six"),
        ("# ## A softmax", "# ### A softmax", "skips a level"),
        ("# ## A softmax", "# # A softmax", "one '# ' heading"),
        ("Explorer(\n", "ipywidgets.interactive(\n", "Output widget"),
        ("import numpy as np", "import matplotlib.pyplot as plt", "pyplot"),
        ('start("90_sample")', 'start("90_sample");', "semicolon"),
        ('print(f"{entropy(', '# %%\nprint(f"{entropy(', "'entropy' of 91_trial-015"),
        ('print("three rounds done")', "# NBVAL_IGNORE_OUTPUT", "must be a compared check"),
        ("scores = np.array", "Explorer(None, '')\nscores = np.array", "only as the last line"),
    ],
)
def test_a_planted_fault_in_a_source_is_found(write_lesson, sample, old, new, fault):
    assert old in sample, "the plant did nothing: vacuous test"
    folder = write_lesson(sample.replace(old, new))
    faults = lesson_faults(folder / "src" / "91_trial.py")
    assert any(fault in line for line in faults), faults


def test_a_long_cell_may_be_tagged_and_a_comment_in_a_fence_is_no_heading(write_lesson, sample):
    text = sample.replace('# %% tags=["solution"]', '# %% tags=["solution", "long"]\n' + LONG)
    text = text.replace("# **Build.**", "# ```\n# # a comment\n# ```\n# **Build.**")
    assert text.count("# ```") == 2
    folder = write_lesson(text)
    assert lesson_faults(folder / "src" / "91_trial.py") == []
