"""The names that other programs rely on."""

import subprocess
import sys

import pytest

import llama2_lib


def test_the_five_names_are_what_they_are_at_home():
    from llama2_lib.model.generate import generate
    from llama2_lib.model.weights import load_model
    from llama2_lib.text.dialog import encode_example, encode_prompt
    from llama2_lib.text.tokenizer import load_tokenizer

    homes = [encode_example, encode_prompt, generate, load_model, load_tokenizer]
    assert [getattr(llama2_lib, name) for name in llama2_lib.__all__] == homes


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = llama2_lib.load_modle


def test_importing_the_package_does_not_import_torch():
    code = "import sys, llama2_lib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", "import sys; sys.exit(1)"], check=False).returncode
