"""Pictures and sliders in a notebook; each leaves a still picture and a sentence behind."""

from llama2_lib.widgets.attack import AttackDesk
from llama2_lib.widgets.chat_room import ChatRoom
from llama2_lib.widgets.claim import show_claim, show_prediction
from llama2_lib.widgets.explorer import Explorer, Stepper, show
from llama2_lib.widgets.progress import bar
