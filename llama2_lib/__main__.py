"""`python -m llama2_lib` is the command `llama2`."""

import os
import sys

from llama2_lib.cli import main

code = main()
if "TORCHELASTIC_RUN_ID" in os.environ:  # gloo's threads may abort the end: PyTorch #179291
    print(end="", flush=True)
    os._exit(code)
sys.exit(code)
