# %% [markdown] slideshow={"slide_type": "slide"}
# # Temperature
# Trial lesson of the tests: one idea in the rhythm of the course.
#
# - **You will be able to explain** what dividing the scores by a temperature does.
# - **Prerequisites:** none. **Paper sections:** 5.1. **Minutes:** 1 on two cores.

# %%
import numpy as np

from llama2_lib.figures import lines
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show

folders = start("90_sample")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A softmax with a temperature
# **Say.** $p_i = e^{x_i/t} / \sum_j e^{x_j/t}$.
#
# **Build.**


# %%
def softmax(scores, temperature=1.0):
    exponentials = np.exp((scores - scores.max()) / temperature)
    return exponentials / exponentials.sum()


# %% [markdown]
# **Check.**


# %%
@check("softmax")
def _():
    p = softmax(np.array([1.0, 2.0, 3.0]))
    assert abs(p.sum() - 1) < 1e-12, "probabilities must sum to 1"


# %% [markdown]
# **See.**

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
scores = np.array([0.0, 1.0, 2.0, 4.0])


def draw(temperature):
    return lines({"p": (np.arange(4), softmax(scores, temperature))}, "token (id)", "probability")


show(draw(1.0), alt=f"At temperature 1 the last token has {softmax(scores)[-1]:.0%}.")

# %%
Explorer(
    draw,
    lambda temperature: (
        f"At temperature {temperature:g} the last token has {softmax(scores, temperature)[-1]:.0%}."
    ),
    temperature=(0.5, 4.0, 0.5),
)

# %% [markdown]
# **Break.** Forget to subtract the largest score. What will the check say?

# %%
with expect_failure(CheckFailed):
    if np.isnan(np.float64(np.inf) * 0):
        raise CheckFailed("the scores overflow: it looks as if the largest is not subtracted.")

# %% tags=["raises-exception"]
np.zeros(2) @ np.zeros(3)

# %% tags=["nbval-ignore-output"]
for _ in bar(range(3), about="a long loop"):
    pass
print("took", np.random.default_rng().random(), "s")

# %%
print("three rounds done")

# %% [markdown]
# ## What the paper reported, what we measured, what we could not
# Nothing.
#
# ## Exercises
# ### Exercise 1 (easy, 2 minutes)
# Write the entropy in nats.
# <details><summary>Hint</summary>Zero probabilities add nothing.</details>


# %% tags=["exercise"]
def entropy(p):
    ### BEGIN SOLUTION
    p = p[p > 0]
    return -(p * np.log(p)).sum()
    ### END SOLUTION


@check("entropy")
def _():
    assert abs(entropy(np.ones(4) / 4) - np.log(4)) < 1e-12, "a fair die of 4 has ln 4 nats"


# %% tags=["solution"]
print(f"{entropy(softmax(scores)):.2f} nats")

# %% [markdown]
# ### Exercise 2 (easy, 1 minute)
# Which temperature gives the largest entropy?
#
# ### Exercise 3 (hard, 5 minutes)
# Why does temperature 0 need its own branch?
#
# ## Questions to think about
# Is a temperature below 1 ever more honest?
#
# ## Next
# Nothing.
