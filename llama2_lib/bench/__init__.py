"""`llama2 bench`: the course's own shapes beside other libraries, turn by turn in one run.

Absolute times vary from machine to machine and minute to minute; the ratio of two neighbours
in one run varies little. So each line is the median of at least five such ratios.
"""

from llama2_lib.bench.beside import generation, ppo, train
from llama2_lib.bench.gpu import gpu as on_gpu
