"""`python -m llama2_lib` is the command `llama2`."""

import sys

from llama2_lib.cli import main

sys.exit(main())
