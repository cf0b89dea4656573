"""From percent-format sources to notebooks: build, check, student copies, slides.

`python -m llama2_lib.teaching.lessons build|check|student|both|compare|lab|slides [NAMES]`
"""

from llama2_lib.teaching.lessons.audit import check
from llama2_lib.teaching.lessons.build import both, build, student
from llama2_lib.teaching.lessons.kernel import compare, lab
from llama2_lib.teaching.lessons.slides import slides
