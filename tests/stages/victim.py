"""Run in a process of its own: build an artifact, and die by SIGKILL where the test says.

The test hands over `given`: the stage, the recipe, the root, the number of the file operation
before which to die (None: live on), a barrier to wait at (or None), and a file in which builds
are counted.
"""

import dataclasses
import functools
import os
import signal
import sys

from llama2_lib import pipeline
from llama2_lib.stages.job import Job

given = globals()["given"]
DURABLE = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
operations = 0
watching = True


def watch(event: str, arguments: tuple) -> None:
    global operations
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if not watching or not (event in DURABLE or writes):
        return
    # Names inside a folder that is being deleted are relative to its descriptor.
    inside = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
    if inside or str(arguments[0]).startswith(str(given["root"])):
        if operations == given["deadline"]:
            os.kill(os.getpid(), signal.SIGKILL)
        operations += 1


stage = given["stage"]
train = pipeline.STAGES[stage].run


@functools.wraps(getattr(train, "func", train))  # a stage is named after its module, too
def announce(job: Job) -> None:
    with given["builds"].open("a") as file:
        file.write(f"{os.getpid()}\n")
    train(job)


pipeline.STAGES[stage] = dataclasses.replace(pipeline.STAGES[stage], run=announce)
if given["barrier"] is not None:
    given["barrier"].wait(60)
sys.addaudithook(watch)
pipeline.artifact(stage, given["recipe"], device="cpu", root=given["root"], bar=False)
watching = False
given["builds"].with_suffix(".operations").write_text(str(operations))
