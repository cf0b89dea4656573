"""Both ways to generate write the same tokens; which is faster, a loaded machine may not tell."""

import pytest

from llama2_lib.claims.scale import measure_gathering
from llama2_lib.recipes import toy


@pytest.mark.slow
def test_both_ways_are_timed_on_two_processes():
    values = measure_gathering(toy(), 0)
    assert values.keys() == {"seconds/parts", "seconds/whole", "slowdown"}
    assert values["slowdown"] == values["seconds/parts"] / values["seconds/whole"] > 0
