"""The command: what it prints, and that a user's mistake costs one line and exit code 2."""

import builtins
import dataclasses
import io
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree

import pytest
import torch

from llama2_lib import bench, chat_room, cli, doctor, pipeline, storage
from llama2_lib.cli import main
from llama2_lib.config import VERSIONS
from llama2_lib.model import chat
from llama2_lib.model.chat import Reply
from llama2_lib.recipes import toy
from llama2_lib.stages import fit
from llama2_lib.stages.corpus import training_documents
from llama2_lib.teaching.lessons import kernel
from llama2_lib.text.dialog import encode_prompt

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(toy_root, tmp_path, monkeypatch, one_thread):
    """Where the command finds toy's artifacts."""
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    return root


@pytest.fixture
def own_texts(tmp_path):
    """A folder of texts: toy's own documents, each in a file."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, document in enumerate(training_documents(toy().corpus)):
        (folder / f"{i:03d}.txt").write_text(document.text)
    return folder


def process(*arguments, **environment):
    """Run Python in the checkout, with some variables changed."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def said(err):
    """What stands on the error stream beside the lines of a progress bar."""
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


@pytest.mark.slow
def test_show_prints_every_setting_and_what_is_on_disk(root, capsys):
    assert main(["show", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for part in dataclasses.fields(toy()):
        value = getattr(toy(), part.name)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                assert f"{part.name}.{field.name} = {getattr(value, field.name)}" in lines
    assert f"weights = {toy().model.n_parameters:,}" in lines
    chain = list(pipeline.fingerprints("red_team_v4", toy()))
    early = [f"red_team_early_v{n}" for n in (1, 2, 3, 4)]
    branches, optional = ["dates", "tools"], ["safety_early", *early]
    n = len(chain) + len(branches) + len(optional)
    listed = [line.split() for line in lines[-n:]]
    assert listed == [
        [stage, state, str(pipeline.artifact_path(stage, toy()))]
        for stages, state in ((chain + branches, "there"), (optional, "optional"))
        for stage in stages
    ]
    assert chain[:2] == ["tokenizer", "corpus"]
    assert "recipe toy of toy, grid, nano, small" in lines
    assert main(["show", "toy", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pretrain.seed = 1" in lines
    states = [line.split()[1] for line in lines[-n:]]
    assert states == [*["there"] * 2, *["missing"] * (len(chain) - 2), *["optional"] * 7]


def test_run_prints_the_folder_and_builds_what_was_asked_for(root, capsys):
    assert main(["run", "pretrain", "--recipe", "toy"]) == 0
    assert capsys.readouterr().out == f"{pipeline.artifact_path('pretrain', toy())}\n"
    assert main(["run", "pretrain", "--recipe", "toy", "--steps", "2", "--device", "cpu"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    pretrain = dataclasses.replace(toy().pretrain, steps=2, warmup=1)
    recipe = dataclasses.replace(toy(), pretrain=pretrain)
    assert folder == pipeline.artifact_path("pretrain", recipe)
    assert (folder / "meta.json").is_file()


def test_run_takes_other_texts(root, capsys, own_texts, monkeypatch):
    monkeypatch.chdir(own_texts.parent)
    arguments = ["run", "pretrain", "--recipe", "toy", "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--data", "texts"]) == 0
    captured = capsys.readouterr()
    folder = Path(captured.out.strip())
    assert folder != pipeline.artifact_path("pretrain", toy())
    samples = (folder / "samples.txt").read_text()
    assert samples.count("\n---\n") == 4, "stories only: of other texts no facts are known"
    loss, sample, *_, hint = said(captured.err)
    row = storage.read_metrics(folder / "metrics.jsonl")[-1]
    words = f"validation loss {row['validation_loss']:.3f} nats per token after 1 steps"
    assert loss == words
    assert sample.startswith("it writes: One morning")
    assert hint == f"talk to it: llama2 chat {folder}"
    for path in own_texts.iterdir():
        path.write_text("one two three")
    line = fails([*arguments, "--data", "texts"], capsys)
    assert "the texts must supply 512 pieces" in line
    assert "Give more text, or set vocab_size=" in line


@pytest.mark.slow
def test_replay_prints_a_row_a_stage_and_what_has_changed(root, capsys, monkeypatch):
    monkeypatch.setattr("llama2_lib.recipes.nano", toy)
    assert main(["replay", "corpus", "sft"]) == 0
    _, corpus, sft, end = capsys.readouterr().out.splitlines()
    assert corpus.split()[0] == "corpus"
    name, _, numbers, apart, *_ = sft.split()
    assert (name, apart) == ("sft", "0")
    assert int(numbers) > 10
    assert end.endswith(" s, 0 differences")
    adamw = fit.adamw
    monkeypatch.setattr(fit, "adamw", lambda model, **options: adamw(model, weight_decay=0.5))
    assert main(["replay", "sft"]) == 1
    shown = capsys.readouterr().out
    assert "sft: metrics.jsonl, row " in shown
    assert "there is no stage 'fly'" in fails(["replay", "fly"], capsys)


def test_an_unknown_command_names_the_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fly"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert "doctor" in captured.err + captured.out


CHAIN = "tokenizer, corpus, pretrain, sft, rewards_v1, rejection_v1, rewards_v2"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # a name that is none gets the nearest, and all in the order of the chain
        ("run pretrian", f"no stage 'pretrian'. Did you mean 'pretrain'? There are: {CHAIN}"),
        ("run", f"name a stage. There are: {CHAIN}"),
        ("run dpo", f"there is no stage 'dpo'. Did you mean 'ppo'? There are: {CHAIN}"),
        ("run xyzzy", f"there is no stage 'xyzzy'. There are: {CHAIN}"),
        ("run sft --recipe nan", "no recipe 'nan'. Did you mean 'nano'? There are: toy"),
        ("show huge", "there is no recipe 'huge'. There are: toy, grid, nano, small."),
        ("claims 5 --recipe tyo", "no recipe 'tyo'. Did you mean 'toy'?"),
        ("chat --stage rewards_v1", "no stage with a language model 'rewards_v1'. Did you"),
        ("chat --stage corpus", "There are: pretrain, sft, rejection_v1, rejection_v2"),
        # an option that would not be used
        ("run safety --data .", "up to ghost_attention learn from --data; safety would learn"),
        ("run safety_early --data .", "safety_early would learn from the invented world"),
        ("run dates --data .", "Leave --data out, or run an earlier stage"),
        ("chat --stage red_team_v1 --data .", "red_team_v1 would learn from the invented world"),
        ("chat --compare --data .", "red_team_v4 would learn from the invented world"),
        ("run corpus --steps 3", "--steps is of pretraining; corpus has none"),
        ("chat --compare --stage sft", "--compare takes all versions"),
        ("chat . --steps 3", "a folder is a finished model; leave --data and --steps"),
        ("chat . --compare", "--compare takes all versions"),
        # a value out of range, before anything is loaded
        ("bench train --pairs 4", "pairs must be at least 5, for a median; got 4"),
        ("run pretrain --recipe toy --steps 0", "steps must be at least 1; got 0"),
        (
            "run pretrain --recipe toy --data no/such/folder",
            "must hold .txt, .jsonl, .json or .parquet files",
        ),
        (f"run pretrain --recipe toy --data {__file__}", "the documents must be a folder"),
        ("chat --top-p 1.5", "top_p must be above 0 and at most 1; got 1.5"),
        ("chat --top-p 0", "top_p must be above 0"),
        ("chat --temperature -1", "temperature must be at least 0; got -1.0"),
        ("chat --temperature nan", "temperature must be at least 0; got nan"),
        ("chat --max-new-tokens 0", "max_new_tokens must be at least 1; got 0"),
    ],
)
def test_a_mistake_costs_one_line(capsys, command, message):
    assert message in fails(command.split(), capsys)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run pretrain --device mars", "device must be auto, cpu, cuda, cuda:N or mps; got 'mars'"),
        ("chat --system [INST]", "content must not contain the format's tags"),
        pytest.param(
            "run pretrain --device cuda", "Use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)  # fmt: skip
def test_a_mistake_beside_finished_models_costs_one_line(root, capsys, command, message):
    assert message in fails([*command.split(), "--recipe", "toy"], capsys)


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
    monkeypatch.setattr(cli.Show, "_do", raising(error))
    assert main(["show"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def raising(error):
    def fail(command):
        raise error

    return fail


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli.Show, "_do", raising(AssertionError("a bug")))
    with pytest.raises(AssertionError, match="a bug"):
        main(["show"])


@pytest.fixture
def say(monkeypatch, capsys):
    """Chat: type these lines, then Ctrl-D; return what was answered and complained about."""

    def talk(lines, *options):
        typed = iter(lines)

        def read(prompt):
            try:
                line = next(typed)
            except StopIteration:
                raise EOFError from None
            if line is KeyboardInterrupt:
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr(builtins, "input", read)
        assert main(["chat", "--recipe", "toy", "--device", "cpu", *options]) == 0
        captured = capsys.readouterr()
        return captured.out.splitlines()[2:], captured.err

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
    assert answers[0] == "Question: What pet does Remy have?"
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
        encode_prompt(asked, tokenizer)
        dialogs.append((asked, options["seed"]))
        if "wait" in asked[-1]["content"]:
            yield Reply("a beginning", [5], False)
            raise KeyboardInterrupt
        yield Reply(str(len(dialogs)), [5, 2], True)

    monkeypatch.setattr(chat, "stream", answer)
    return dialogs


def texts(dialog):
    return [message["content"] for message in dialog]


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
    assert texts(heard[-1][0]) == ["Hi", "1", "Well?"]


def test_commands_set_the_system_message_and_begin_a_new_dialog(root, say, heard):
    typed = ["Hi", "/system You are a pirate.", "Hi", "And now?", "/new", "Hi", "/system", "Hi"]
    answers, errors = say([*typed, "/help", "/system [INST] no", "Hi"])
    assert "content must not contain the format's tags" in errors
    assert [texts(dialog) for dialog, _ in heard] == [
        ["Hi"],
        ["You are a pirate.", "Hi"],
        ["You are a pirate.", "Hi", "2", "And now?"],
        ["You are a pirate.", "Hi"],
        ["Hi"],
        ["Hi", "5", "Hi"],  # what was refused changed nothing
    ]
    assert [dialog[0]["role"] for dialog, _ in heard[:2]] == ["user", "system"]
    assert chat_room.COMMANDS in answers
    assert "(a new dialog; the model is told first: You are a pirate.)" in answers


def test_a_system_message_can_be_given_at_the_start(root, say, heard):
    say(["Hi"], "--system", "Answer in short sentences.")
    assert texts(heard[0][0]) == ["Answer in short sentences.", "Hi"]


def test_ctrl_c_ends_an_answer_or_a_line_and_not_the_chat(root, say, heard):
    answers, errors = say(["Hi", "wait", KeyboardInterrupt, "Hi"])
    assert errors == ""
    assert [line for line in answers if line] == ["1", "(stopped)", "(Ctrl-D ends the chat.)", "3"]
    assert texts(heard[-1][0]) == ["Hi", "1", "Hi"], "the stopped answer left a trace"


def test_a_dialog_that_fills_the_context_forgets_its_oldest_turns(root, say, heard):
    long = "What is 3 plus 4? Please tell me what 5 plus 6 is. "
    answers, errors = say([long] * 6, "--system", "Be kind.")
    assert errors == ""
    assert sum("no longer fit" in line for line in answers) >= 3
    assert texts(heard[-1][0])[0] == "Be kind."
    assert texts(heard[-1][0])[-3:] == [long, "5", long]
    assert len(heard[-1][0]) < len(heard[0][0]) + 2 * 5


def test_a_silent_answer_spoils_no_later_question(root, say, monkeypatch):
    """The format carries no message without text; the dialog then goes on without that turn."""
    asked = []

    def answer(model, tokenizer, dialog, **_):
        asked.append(texts(dialog))
        yield Reply("" if len(asked) == 1 else "fine", [5, 2], True)

    monkeypatch.setattr(chat, "stream", answer)
    answers, errors = say(["Hi", "And now?"])
    assert errors == ""
    assert asked == [["Hi"], ["And now?"]]
    assert answers[:2] == ["(no answer)", "fine"]


class Terminal(io.StringIO):
    """What is written to a terminal, one string for each time that it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def isatty(self):
        return True

    def flush(self):
        self.shown.append(self.getvalue())


@pytest.mark.parametrize(
    ("growing", "screen"),
    [
        (["One", "One two", "One two."], ["One", "One two", "One two.", "One two.\n"]),
        (["ca", "caf\ufffd", "café"], ["ca", "café", "café\n"]),  # half a character waits
        (["a", "a [INST", "a"], ["a", "a [INST", "a [INST\na\n"]),  # what was taken out
        ([""], ["", "\n"]),
    ],
)
def test_an_answer_grows_on_a_terminal_and_is_whole_elsewhere(monkeypatch, capsys, growing, screen):
    chat_room._print_growing(iter(growing))
    assert capsys.readouterr().out == f"{growing[-1]}\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    chat_room._print_growing(iter(growing))
    terminal.flush()
    assert terminal.shown == screen


def test_a_line_that_is_no_utf8_costs_one_line(root, say):
    for options in (PRETRAINED, ()):
        answers, errors = say(["caf\udce9", "The"], *options, "--max-new-tokens", "3")
        assert "surrogates not allowed" in errors
        assert len(errors.splitlines()) == 1
        assert answers != []


def test_a_folder_can_be_talked_to(root, say, capsys):
    folder = str(pipeline.artifact_path("pretrain", toy()))
    answers, _ = say(["The old man"], folder, "--max-new-tokens", "4")
    assert answers[0].startswith("The old man")
    answers, _ = say(["/new"], str(pipeline.artifact_path("sft", toy())))
    assert answers[0] == "(a new dialog)"
    assert "takes no --system" in fails(["chat", folder, "--system", "Be kind."], capsys)
    assert "none does not exist" in fails(["chat", str(root / "none")], capsys)


def test_a_model_of_ones_own_texts_can_be_talked_to(root, say, capsys, own_texts):
    own = ["--data", str(own_texts), "--steps", "1"]
    assert main(["run", "pretrain", "--recipe", "toy", "--device", "cpu", *own]) == 0
    capsys.readouterr()
    answers, errors = say(["The old man"], *own, "--max-new-tokens", "4")
    assert answers[0].startswith("The old man")
    assert errors == "", "it was trained a second time"


def test_the_tuned_model_answers_and_never_beyond_its_context(root, say):
    answers, errors = say(["What is 3 plus 4?", "", "word " * 200], "--max-new-tokens", "5")
    assert len(answers[0]) > 0
    assert "a dialog must leave room for an answer in 128 tokens" in errors


CHAT = """
import sys
from llama2_lib.cli import main
assert main(["chat", "--recipe", "toy", "--device", "cpu"]) == 0
slow = {"torch._dynamo", "sklearn", "scipy.stats", "pandas", "matplotlib", "ipywidgets", "sympy"}
print(sorted(slow & set(sys.modules)))
"""


@pytest.mark.slow
def test_the_chat_waits_for_no_import_that_it_does_not_need(root):
    """Together they took as long as all else; they came with an initialiser and two averages."""
    result = process("-c", CHAT, LLAMA2_ARTIFACTS=str(root))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_all_versions_answer_side_by_side(root, say):
    answers, errors = say(["What is 3 plus 4?", ""], "--compare", "--max-new-tokens", "5")
    assert errors == ""
    assert [line[:5].strip() for line in answers[: len(VERSIONS)]] == [
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


HELP = """
import os, sys
from llama2_lib.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code
print(sorted({"torch", "numpy", "scipy", "matplotlib"} & set(sys.modules)))
print(os.environ["OMP_WAIT_POLICY"])
"""


def test_help_does_not_wait_for_torch_and_threads_wait_passively(monkeypatch):
    """Unless the user says otherwise."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        result = process("-c", HELP, **given)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-2:] == ["[]", policy]
        for command in ("doctor", "course", "run", "show", "chat", "claims", "bench"):
            assert command in result.stdout


@pytest.mark.parametrize(
    ("steps", "kib", "name"),
    [("30", 190, "step-0000005"), ("30", 300, "step-0000005"), ("2", 90, "model.safetensors")],
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


# --- training that nobody asked for


@pytest.fixture
def slow_machine(monkeypatch, tmp_path):
    """Nothing is on disk, and an estimate says that training takes hours; none is begun."""
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "nothing"))
    monkeypatch.setattr(doctor, "training_speed", lambda seconds: 1.0)
    begun = []
    monkeypatch.setattr(pipeline, "load", lambda *request, **_: begun.append(request))
    monkeypatch.setattr(pipeline, "artifacts", lambda requests, **_: begun.append(requests))
    return begun


@pytest.mark.parametrize(
    "arguments",
    [["chat"], ["chat", "--compare"], ["chat", "--stage", "pretrain"], ["claims", "31"]],
)
def test_long_training_that_nobody_asked_for_is_refused_without_a_terminal(
    slow_machine, capsys, arguments
):
    line = fails([*arguments, "--recipe", "toy"], capsys)
    assert "stages that this needs are not on disk (tokenizer to " in line
    assert " h of training on this CPU. Add --yes to train them." in line
    assert slow_machine == []


@pytest.mark.parametrize(("typed", "begun"), [("n", False), ("", False), ("y", True)])
def test_long_training_is_asked_for_on_a_terminal(slow_machine, monkeypatch, capsys, typed, begun):
    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda words: asked.append(words) or typed)
    monkeypatch.setattr(chat_room, "talk", lambda *_: 0)
    monkeypatch.setattr(pipeline, "load", lambda *r, **_: slow_machine.append(r) or (None, None))
    assert main(["chat", "--recipe", "toy"]) == (0 if begun else 2)
    assert asked[0].endswith("Train them now? [y/N] ")
    assert bool(slow_machine) == begun
    assert ("nothing was trained" in capsys.readouterr().err) != begun
    slow_machine.clear()
    assert main(["chat", "--recipe", "toy", "--yes"]) == 0
    assert len(asked) == 1, "--yes was asked about"
    assert slow_machine


def test_the_kernel_is_looked_at_before_the_training(monkeypatch, capsys):
    from llama2_lib import course

    begun = []
    monkeypatch.setattr(course, "run", lambda **_: begun.append(1) or 0)
    monkeypatch.setattr(kernel, "kernel_fault", lambda: "the kernel python3 starts another Python")
    assert "ipykernel install --sys-prefix" in fails(["course"], capsys)
    assert begun == []
    assert main(["course", "--no-notebooks"]) == 0
    assert begun == [1]


# --- the process


@pytest.mark.slow
def test_a_log_holds_lines_and_a_signal_to_end_is_answered_with_one(tmp_path):
    """Training into a file: no carriage return, no bar over a bar; then SIGTERM, and on again."""
    command = ["-m", "llama2_lib", "run", "pretrain", "--recipe", "toy", "--device", "cpu"]
    variables = {"LLAMA2_ARTIFACTS": str(tmp_path / "a"), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        training = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=os.environ | variables, stderr=file
        )
        end = time.monotonic() + 120
        while not list((tmp_path / "a").glob("pretrain/.*.partial/step-*")):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        training.send_signal(signal.SIGTERM)
        assert training.wait(20) == 128 + signal.SIGTERM
    text = log.read_text()
    assert text.splitlines()[-1] == (
        "llama2: ended by a signal; the same command goes on from the last checkpoint."
    )
    assert "\r" not in text
    bars = [line for line in text.splitlines() if "%|" in line]
    assert all(stage in text for stage in ("tokenizer", "corpus", "pretrain"))
    assert len(bars) < 10, "a line now and then, not one a step"
    again = process(*command, **variables)
    assert again.returncode == 0, again.stderr
    assert "\r" not in again.stderr


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    command = ("run", "tokenizer", "--recipe", "toy", "--data", str(tmp_path))
    result = process("-m", "llama2_lib", *command)
    assert result.returncode == 2
    message = f"llama2: {tmp_path} must hold .txt, .jsonl, .json or .parquet files; none found."
    assert said(result.stderr) == [message]
