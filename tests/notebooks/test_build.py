import asyncio
import json
import os
import resource
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

from llama2_lib.teaching.lessons import build, check, kernel
from llama2_lib.teaching.lessons.__main__ import main
from llama2_lib.teaching.lessons.build import normalise
from llama2_lib.teaching.lessons.kernel import lab
from llama2_lib.teaching.lessons.source import made_from


def outputs(folder, name):
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.mark.slow
def test_a_second_build_gives_the_same_outputs_and_a_changed_source_others(course):
    """All of one execution: also those that are ignored, which alone may differ."""
    ignored = "90_sample-012"
    before = outputs(course, "90_sample")
    assert "took" in before[ignored][0].text
    assert build(folder=course) == []
    after = outputs(course, "90_sample")
    assert after.pop(ignored) != before.pop(ignored)
    assert after == before

    source = course / "src" / "90_sample.py"
    source.write_text(source.read_text().replace("2.0, 4.0])", "2.0, 3.0])"))
    assert build(folder=course) == []
    # the slider's cell is as it was, and draws what another cell now says
    assert outputs(course, "90_sample")["90_sample-008"] != before["90_sample-008"]


def test_nothing_of_the_run_is_stored(course):
    text = (course / "90_sample.ipynb").read_text()
    for trace in ("widget-view", "widget-state", "iopub", str(course.parent), "a long loop: "):
        assert trace not in text
    notebook = json.loads(text)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "made_from"}
    assert notebook["metadata"]["made_from"] == made_from()
    explorer = notebook["cells"][8]["outputs"][0]["data"]
    assert set(explorer) == {"image/png", "text/plain"}, "the still picture must stay"


def test_progress_and_passing_text_leave_no_output(write_lesson):
    folder = write_lesson(
        "# %%\nimport sys\n"
        "from llama2_lib.widgets import bar\n"
        "from tqdm.auto import tqdm\n"
        "from llama2_lib.widgets.progress import leave_no_bars, passing_text\n"
        "# %%\n"
        "with passing_text('preparing'):\n"
        "    print('3/9 steps', file=sys.stderr)\n"
        "    for i in bar(range(9)):\n"
        "        if i == 3:\n"
        "            break\n"
        "# %%\n"
        "for i in tqdm(range(3), desc='plain'):\n"
        "    pass\n"
        "# %%\n"
        "leave_no_bars()\n"
        "for i in tqdm(range(3), desc='quiet'):\n"
        "    pass\n"
        "# %%\n"
        "print('kept', file=sys.stderr)\n"
    )
    assert build(folder=folder) == []
    found = outputs(folder, "91_trial")
    assert found["91_trial-001"] == []
    assert "plain" in found["91_trial-002"][0].data["text/plain"], "tqdm alone leaves a text"
    assert found["91_trial-003"] == []
    assert found["91_trial-004"][0].text == "kept\n"


def test_a_failing_lesson_is_named_and_the_others_are_written(write_lesson, capfd):
    write_lesson("# %%\nprint(1)\n", name="92_sound")
    folder = write_lesson("# %%\nprint(0)\n# %%\n1 / 0\n")
    (fault,) = build(folder=folder)
    assert fault.startswith("91_trial.py")
    assert "ZeroDivisionError" in fault
    assert not (folder / "91_trial.ipynb").exists()
    assert (folder / "92_sound.ipynb").exists()
    assert main(["build", "91_trial", "--folder", str(folder)]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_caller_may_have_a_running_loop(write_lesson):
    """As a cell of a notebook has, and a test that drives a browser."""

    async def built():
        return build(folder=folder)

    folder = write_lesson("# %%\nprint(6 * 7)\n")
    assert asyncio.run(built()) == []
    assert "42" in (folder / "91_trial.ipynb").read_text()


def test_another_folder_leaves_the_checkout_clean(write_lesson, tmp_path):
    folder = write_lesson("# %%\nprint(1)\n")
    assert build(folder=folder, out=tmp_path / "out") == []
    assert (tmp_path / "out" / "91_trial.ipynb").exists()
    assert not list(folder.glob("*.ipynb"))


def test_a_traceback_is_cut_to_its_last_line():
    lines = ["/home/someone/cell.py in <module>", "1 / 0"]
    error = nbformat.v4.new_output(
        "error", ename="ZeroDivisionError", evalue="division by zero", traceback=lines
    )
    cell = nbformat.v4.new_code_cell("1 / 0", outputs=[error])
    normalise(nbformat.v4.new_notebook(cells=[cell]))
    assert cell.outputs[0].traceback == ["ZeroDivisionError: division by zero"]


def test_a_wrong_name_or_folder_is_one_line_and_status_2(course, tmp_path, capsys):
    assert main(["check", "07_absent", "--folder", str(course)]) == 2
    assert "07_absent" in capsys.readouterr().err
    assert main(["check", "--folder", str(tmp_path / "nowhere")]) == 2
    assert "root of the checkout" in capsys.readouterr().err
    assert main(["check", "90_sample.ipynb", "--folder", str(course)]) == 0


@pytest.mark.parametrize("names", [(), ("90_sample",)])
def test_a_built_course_has_no_faults(course, names):
    assert check(names, folder=course) == []


def test_a_kernel_of_another_python_is_refused_before_anything_is_run(
    write_lesson, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(kernel, "kernel_fault", lambda: "the kernel python3 starts /no/python")
    folder = write_lesson("# %%\nprint(1)\n")
    for command in (["build"], ["compare"], ["lab", "--no-show", "--out", str(tmp_path / "lab")]):
        (folder / "91_trial.ipynb").write_text("{}")
        assert main([*command, "--folder", str(folder)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("lessons: the kernel python3 starts /no/python. Install the")


def test_a_kernel_that_dies_as_it_starts_is_one_line(write_lesson, monkeypatch):
    async def die(self, **_):
        raise RuntimeError("Kernel died before replying to kernel_info\nTraceback ...")

    monkeypatch.setattr(NotebookClient, "async_execute", die)
    (fault,) = build(folder=write_lesson("# %%\nprint(1)\n"))
    assert fault == (
        "91_trial.py: the kernel could not start: Kernel died before replying to kernel_info. "
        "Try llama2 doctor."
    )


def test_a_full_disk_costs_one_line(write_lesson, tmp_path, capsys):
    folder = write_lesson(f"# %%\nprint('{'x' * 300_000}')\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, hard))
    try:
        assert main(["student", "--folder", str(folder), "--out", str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    [line] = capsys.readouterr().err.splitlines()
    assert "91_trial.ipynb could not be written" in line
    assert "Free some disk space" in line


@pytest.fixture
def opened(monkeypatch):
    """What JupyterLab was started with."""
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command, env: calls.append((command, env)) or 0)
    return calls


def test_the_lab_opens_a_working_copy_and_never_overwrites_it(course, tmp_path, opened):
    out = tmp_path / "lab"
    assert lab(folder=course, out=out) == []
    assert (out / "90_sample.ipynb").read_bytes() == (course / "90_sample.ipynb").read_bytes()
    (out / "90_sample.ipynb").write_text("my own work")
    nbformat.write(nbformat.v4.new_notebook(), course / "91_more.ipynb")
    assert lab(folder=course, out=out) == []
    assert (out / "90_sample.ipynb").read_text() == "my own work"
    assert (out / "91_more.ipynb").exists()
    (command, environment), _ = opened
    assert f"--ServerApp.root_dir={out}" in command
    assert "--LabApp.default_url=/lab/tree/90_sample.ipynb" in command
    assert os.path.isabs(environment["LLAMA2_ARTIFACTS"])
    with pytest.raises(FileNotFoundError, match="run from the root"):
        lab(folder=tmp_path / "nothing", out=out)


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_the_lab_asks_for_no_news_and_starts_as_root_too(
    tmp_path, course, opened, monkeypatch, user, allowed
):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    lab(folder=course, out=tmp_path / "lab", show=False)
    [(command, _)] = opened
    [settings] = [word.split("=")[1] for word in command if "app_settings_dir" in word]
    overrides = json.loads((tmp_path / "lab" / ".lab" / "overrides.json").read_text())
    assert settings == str(tmp_path / "lab" / ".lab")
    notification = overrides["@jupyterlab/apputils-extension:notification"]
    assert notification == {"fetchNews": "false", "checkForUpdates": False}
    assert len(overrides) == 1
    assert "--no-browser" in command
    assert ("--allow-root" in command) == allowed


def test_letters_are_large_on_a_projector_only(tmp_path, course, opened):
    sizes = []
    for projector in (True, False):
        lab(folder=course, out=tmp_path / "lab", show=False, projector=projector)
        overrides = json.loads((tmp_path / "lab" / ".lab" / "overrides.json").read_text())
        sizes.append(overrides.get("@jupyterlab/apputils-extension:themes", {}).get("overrides"))
    assert sizes == [{"code-font-size": "20px", "content-font-size1": "22px"}, None]
