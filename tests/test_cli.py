"""The command: what it prints, and that a user's mistake costs one line and exit code 2."""

import builtins
import dataclasses
import resource
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import get_args

import pytest
import torch

from llama2_lib import bench, cli, pipeline
from llama2_lib import chat as talking
from llama2_lib.cli import main
from llama2_lib.evaluation import chat
from llama2_lib.recipes import toy
from llama2_lib.stages.corpus import training_documents
from llama2_lib.text.dialog import encode_prompt

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(toy_root, tmp_path, monkeypatch, one_thread):
    """Where the command finds toy's artifacts."""
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    return root


def said(err):
    """What stands on the error stream beside a progress bar, which is wiped with blanks."""
    return [line for line in err.splitlines() if line.strip() and "%|" not in line]


def fails(arguments, capsys):
    """Return the one line that a mistake costs."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = said(captured.err)
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("llama2: ")
    assert "Traceback" not in captured.err + captured.out
    return lines[0]


def test_show_prints_every_setting_and_what_is_on_disk(root, capsys):
    assert main(["show", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for part in dataclasses.fields(toy()):
        value = getattr(toy(), part.name)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                assert f"{part.name}.{field.name} = {getattr(value, field.name)}" in lines
    assert f"weights = {toy().model.n_parameters:,}" in lines
    chain = [stage for stage in pipeline.STAGES if stage not in ("reward_model", "safety_data")]
    missing = [stage for stage in chain if "early" in stage]
    for stage, line in zip(chain, lines[-len(chain) :], strict=True):
        state = "missing" if stage in missing else "there"
        assert line.split() == [stage, state, str(pipeline.artifact_path(stage, toy()))]
    assert main(["show", "toy", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pretrain.seed = 1" in lines
    assert [line.split()[1] for line in lines[-len(chain) :]] == [
        *["there"] * 2,
        *["missing"] * (len(chain) - 2),
    ]


def test_run_prints_the_folder_and_builds_what_was_asked_for(root, capsys):
    assert main(["run", "pretrain", "--recipe", "toy"]) == 0
    assert capsys.readouterr().out == f"{pipeline.artifact_path('pretrain', toy())}\n"
    assert main(["run", "pretrain", "--recipe", "toy", "--steps", "2", "--device", "cpu"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    pretrain = dataclasses.replace(toy().pretrain, steps=2, warmup=1)
    recipe = dataclasses.replace(toy(), pretrain=pretrain)
    assert folder == pipeline.artifact_path("pretrain", recipe)
    assert (folder / "meta.json").is_file()


def test_run_takes_other_texts(root, capsys, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for i, document in enumerate(training_documents(toy().corpus)):
        (tmp_path / "texts" / f"{i:03d}.txt").write_text(document.text)
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "pretrain", "--recipe", "toy", "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--data", "texts"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder != pipeline.artifact_path("pretrain", toy())
    samples = (folder / "samples.txt").read_text()
    assert samples.count("\n---\n") == 4, "stories only: of other texts no facts are known"
    for path in (tmp_path / "texts").iterdir():
        path.write_text("one two three")
    line = fails([*arguments, "--data", "texts"], capsys)
    assert "the texts must supply 512 pieces" in line
    assert "Lower vocab_size or give more text" in line


def test_an_unknown_stage_or_recipe_names_the_choices(capsys):
    for arguments in (["run", "dpo"], ["show", "huge"], ["fly"], ["run"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        shown = captured.err + captured.out
        assert ("pretrain" in shown) or ("nano" in shown) or ("doctor" in shown)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_with_advice(root, capsys):
    line = fails(["run", "pretrain", "--recipe", "toy", "--device", "cuda"], capsys)
    assert "cuda" in line
    assert "Use --device cpu" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "mars"], "device must be auto, cpu, cuda or cuda:N; got 'mars'"),
        (["--steps", "0"], "steps must be at least 1; got 0"),
        (["--data", "no/such/folder"], r"no/such/folder must hold .txt or .jsonl files"),
        (["--data", __file__], "must hold .txt or .jsonl files"),
    ],
)
def test_bad_input_costs_one_line(root, capsys, arguments, message):
    assert message in fails(["run", "pretrain", "--recipe", "toy", *arguments], capsys)


def test_a_bad_line_of_a_file_is_named(root, capsys, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "good"}\n{"words": "bad"}\n')
    arguments = ["run", "corpus", "--recipe", "toy", "--data", str(tmp_path / "texts")]
    assert "a.jsonl line 2 must be an object" in fails(arguments, capsys)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("a rule; what came; what to do"), 2, "llama2: a rule; what came; what to do"),
        (FileNotFoundError("no file"), 2, "llama2: no file"),
        (FloatingPointError("nan"), 2, "llama2: nan"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "goes on from the last checkpoint"),
    ],
)
def test_every_expected_error_becomes_one_line(monkeypatch, capsys, error, status, message):
    def fail(command):
        raise error

    monkeypatch.setitem(cli._HANDLERS, cli.Show, fail)
    assert main(["show"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail(command):
        raise AssertionError("a bug")

    monkeypatch.setitem(cli._HANDLERS, cli.Show, fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(["show"])


@pytest.fixture
def say(monkeypatch, capsys):
    """Chat: type these lines, then Ctrl-D; return what was answered and complained about."""

    def talk(lines, *options):
        typed = iter(lines)

        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", read)
        assert main(["chat", "--recipe", "toy", "--device", "cpu", *options]) == 0
        captured = capsys.readouterr()
        return captured.out.splitlines()[1:], captured.err

    return talk


PRETRAINED = ("--stage", "pretrain")


def test_chat_continues_each_line_until_the_end(root, say):
    options = (*PRETRAINED, "--max-new-tokens", "12")
    answers, errors = say(["The old man", "", "  ", "The old man"], *options)
    assert errors == ""
    answered = [line for line in answers if line.startswith("The old man")]
    assert len(answered) == 2
    assert all(len(line) > len("The old man") for line in answered)
    assert answered[0] != answered[1], "each turn has a seed of its own"
    assert say(["The old man", "", "  ", "The old man"], *options)[0] == answers


def test_chat_asks_a_question_in_the_form_of_the_corpus(root, say):
    answers, _ = say(["Question: What pet does Remy have?"], *PRETRAINED, "--temperature", "0")
    assert answers[:2][0] == "Question: What pet does Remy have?"
    assert answers[1].startswith("Answer:")


def test_chat_goes_on_after_a_line_that_is_too_long(root, say):
    answers, errors = say(["word " * 200, "The"], *PRETRAINED, "--max-new-tokens", "5")
    assert "prompt and answer must fit 128 tokens" in errors
    assert len(errors.splitlines()) == 1
    assert any(line.startswith("The") for line in answers)


@pytest.fixture
def heard(monkeypatch):
    """The dialogs that the chat asks the model to answer; it says `1`, `2`, ... ."""
    dialogs = []

    def answer(model, tokenizer, asked, **options):
        dialogs.append((asked[0], options["seed"]))
        encode_prompt(asked[0], tokenizer)
        return [chat.Answer(str(len(dialogs)), [5, 2], True)]

    monkeypatch.setattr(talking, "answer", answer)
    return dialogs


def test_chat_with_the_tuned_model_is_a_dialog_and_an_empty_line_begins_a_new_one(root, say, heard):
    answers, errors = say(["Hi", "And now?", "  ", "Hi"])
    assert (answers[:3], errors) == (["1", "2", "3"], "")
    first = [{"role": "user", "content": "Hi"}]
    second = [
        *first, {"role": "assistant", "content": "1"}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    assert heard == [(first, 0), (second, 1), (first, 2)]


def test_a_message_that_is_refused_leaves_no_trace_in_the_dialog(root, say, heard):
    _, errors = say(["Hi", "[INST] you", "Well?"])
    assert "content must not contain the format's tags" in errors
    assert len(errors.splitlines()) == 1
    contents = [message["content"] for message in heard[-1][0]]
    assert contents == ["Hi", "1", "Well?"]


def test_the_tuned_model_answers_and_never_beyond_its_context(root, say):
    answers, errors = say(["What is 3 plus 4?", "", "word " * 200], "--max-new-tokens", "5")
    assert len(answers[0]) > 0
    assert "a dialog must leave room for an answer in 128 tokens" in errors


def test_every_model_of_the_chain_can_be_talked_to():
    models = set(get_args(cli.ModelName))
    no_models = {"tokenizer", "corpus", "reward_model", "safety_data"}
    rewards = {stage for stage in pipeline.STAGES if stage.startswith("rewards_")}
    assert models == set(pipeline.STAGES) - no_models - rewards


def test_all_versions_answer_side_by_side(root, say):
    answers, errors = say(["What is 3 plus 4?", ""], "--compare", "--max-new-tokens", "5")
    assert errors == ""
    assert [line[:5].strip() for line in answers[: len(talking.VERSIONS)]] == [
        "base", "SFT", "V1", "V2", "V3", "V4", "V5", "GAtt", "chat",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "function"), [("train", "train"), ("generate", "generation"), ("ppo", "ppo")]
)
def test_bench_passes_its_settings_on(monkeypatch, what, function):
    calls = []
    monkeypatch.setattr(bench, function, lambda **options: calls.append(options) or 0)
    assert main(["bench", what, "--pairs", "7", "--precision", "bf16", "--device", "cpu"]) == 0
    assert calls == [{"pairs": 7, "precision": "bf16", "device": "cpu"}]


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom llama2_lib.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    for command in ("doctor", "course", "run", "show", "chat", "claims", "bench"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("steps", "kib", "name"),
    [("30", 190, "step-0000005"), ("30", 300, "step-0000005"), ("2", 190, "model.safetensors")],
    ids=["weights of a checkpoint", "optimiser of a checkpoint", "finished weights"],
)
def test_a_full_disk_costs_one_line_and_can_be_gone_on_from(
    root, capsys, monkeypatch, steps, kib, name
):
    """No file may grow beyond a limit, which is how a full disk looks to a program."""
    arguments = ["run", "pretrain", "--recipe", "toy", "--seed", "1", "--device", "cpu"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, hard))
    try:
        line = fails([*arguments, "--steps", steps], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert name in line
    assert "could not be written" in line
    assert "Free some disk space" in line
    assert main([*arguments, "--steps", steps]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "meta.json").is_file()


def test_the_module_is_the_command(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "llama2_lib", "run", "tokenizer", "--recipe", "toy",
         "--data", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2
    message = f"llama2: {tmp_path} must hold .txt or .jsonl files; none found."
    assert said(result.stderr) == [message]
