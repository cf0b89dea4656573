"""The graph of stages and its cache: ask for an artifact, and what is missing is built first.

`<stage>/<fingerprint>/` under `data/release/` or `artifacts/` holds a finished stage. The
fingerprint covers every setting that decides what the stage makes, and its inputs' fingerprints, so
a changed number never meets stale files.
"""

from llama2_lib.pipeline.build import (
    artifact,
    artifact_path,
    artifact_root,
    artifacts,
    folders_of,
    joint_artifact,
    load,
    missing,
    recall,
)
from llama2_lib.pipeline.graph import (
    JUDGE,
    STAGES,
    fingerprint,
    fingerprints,
    released_stages,
)
