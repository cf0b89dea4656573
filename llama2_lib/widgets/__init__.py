"""Pictures and sliders in a notebook; each leaves a still picture and a sentence behind."""

from llama2_lib.widgets.attack import AttackDesk
from llama2_lib.widgets.explorer import Explorer, Stepper
from llama2_lib.widgets.progress import bar
from llama2_lib.widgets.show import show

__all__ = ["AttackDesk", "Explorer", "Stepper", "bar", "show"]
