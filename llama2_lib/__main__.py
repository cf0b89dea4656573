"""`python -m llama2_lib` is the command `llama2`."""

import os
import sys

from llama2_lib.cli import main

code = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # gloo's threads may hold tensors still: at the interpreter's end they abort (PyTorch #179291)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
