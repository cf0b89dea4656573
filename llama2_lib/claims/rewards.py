"""Claims on reward models (paper sections 3.2.1 to 3.2.3, appendix A.3), as declared.

All but 18 and 19 compare models of the grid's size that were trained on the world's pairs. What
their intervals can resolve, reckoned before any run: with 2,500 held-out pairs a seed, 3 seeds,
and one pair in ten that two models disagree on, about 0.7 points over pairs; over seeds, if only
the pairs vary, 1.6 points; in one grade about twice as much. Claim 12 has 5,000 pairs a seed.

Seeds 0 to 2 left claims 11 and 13 to 17 open. Seeds 3 to 7 were then added to all that compare
models of the grid's size, once, by the same rules: `llama2 claims 11 12 13 14 15 16 17 20 28
--seeds 8`.
"""

from llama2_lib.claims.claim import Claim, Trust, threshold
from llama2_lib.claims.rewards_arms import (
    auxiliary_requests,
    calibration_requests,
    grade_requests,
    margin_requests,
    mix_requests,
    scale_requests,
    threshold_requests,
    two_requests,
)
from llama2_lib.claims.rewards_judges import (
    judge_auxiliary,
    judge_calibration,
    judge_grades,
    judge_margin,
    judge_mix,
    judge_poles,
    judge_scale,
    judge_threshold,
    judge_two,
)
from llama2_lib.claims.rewards_rounds import (
    judge_drift,
    judge_shares,
    measure_drift,
    measure_shares,
    round_requests,
)
from llama2_lib.claims.rewards_runs import (
    AT,
    END,
    measure_auxiliary,
    measure_calibration,
    measure_grades,
    measure_margin,
    measure_mix,
    measure_poles,
    measure_scale,
    measure_threshold,
    measure_two,
)

PAIRED = "(95 %, the wider of the intervals over seeds and over the same held-out pairs)"

CLAIMS = (
    Claim(
        id=11,
        section="3.2.2",
        statement="A reward model is the more accurate, the clearer the preference.",
        paper_value="80.7, 67.5, 60.9, 54.7 % from clearest to unsure; safety 94.3, 76.3, 65.7, "
        "55.3 %",
        paper_trust=Trust.PRINTED,
        prediction="Accuracy rises from grade to grade for both models, from near chance on ties; "
        "a model that learned from tossed coins stays at one half.",
        threshold=threshold(
            "On its own stream each model gains more than {slope:g} of accuracy a grade (95 % "
            "over seeds), seeds are in the order of the grades more often than by chance "
            "(p < {p:g}), and accuracy on the least clear grade lies within {tie:g} of one half "
            "(90 %). The control, whose labels were exchanged by coins, lies within {control:g} "
            "of one half (90 %): what it learned from chance may be right or wrong by chance.",
            slope=0.03,
            p=0.05,
            tie=0.1,
            control=0.1,
        ),
        judge=judge_grades,
        measure=measure_grades,
        requests=grade_requests,
        recorded=True,
    ),
    Claim(
        id=12,
        section="A.3.3",
        statement="A margin that grows with the grade makes the model better on clear pairs.",
        paper_value="no, small, large margin: 79.1, 80.4, 80.7 % on the clearest pairs; 54.5, "
        "55.0, 54.3 % on unsure ones; 62.5, 63.0, 62.9 % on all",
        paper_trust=Trust.PRINTED,
        prediction="The large margin gains on the clearest pairs, the small one on average. What "
        "the large one loses on ties, 0.2 points in the paper, is shown and not judged: it would "
        "take a hundred thousand pairs.",
        threshold=threshold(
            "On the clearest pairs the large margin, and on all pairs the small one, is right more "
            f"often than none by more than {{gain:g}} {PAIRED}. If that is undecided and the "
            "interval on the clearest pairs reaches further than {resolve:g} from its middle, the "
            "paper's own gain there, it cannot be shown at this scale.",
            gain=0.0,
            resolve=0.016,
        ),
        judge=judge_margin,
        measure=measure_margin,
        requests=margin_requests,
        recorded=True,
    ),
    Claim(
        id=13,
        section="A.3.3",
        statement="The margin drives scores towards 0 and 1.",
        paper_value="figure 27: without a margin below 2 % of answers in any bin; with the large "
        "one about 8.3 % near 1 and 3.7 % near 0",
        paper_trust=Trust.FIGURE,
        prediction="After the sigmoid more answers lie at both ends with the large margin than "
        "without; with the small one it is between.",
        threshold=threshold(
            "Scores of all held-out answers, shifted to mean 0, since comparisons leave the zero "
            "free: the share within {end:g} of 0 or 1 after the sigmoid grows by more than "
            "{gain:g} with the large margin, it grows at each end, and with the small one it "
            "grows in sum (95 % over seeds).",
            end=END,
            gain=0.05,
        ),
        judge=judge_poles,
        measure=measure_poles,
        requests=margin_requests,
        recorded=True,
    ),
    Claim(
        id=14,
        section="A.3.4",
        statement="An auxiliary safety loss lifts the recall of unsafe answers.",
        paper_value="recall at 0.5 from 73.0 to 90.4 %, accuracy on pairs from 63.7 to 64.5 %",
        paper_trust=Trust.PRINTED,
        prediction="Recall rises much, and not by calling everything unsafe; accuracy on pairs "
        "does not fall. The loss is our reconstruction: the paper gives no formula.",
        threshold=threshold(
            "Recall gains more than {recall:g}, recall less false alarms gains (both 95 % over "
            f"seeds), and accuracy on pairs changes by more than -{{loss:g}} {PAIRED}.",
            recall=0.05,
            loss=0.01,
        ),
        judge=judge_auxiliary,
        measure=measure_auxiliary,
        requests=auxiliary_requests,
        recorded=True,
    ),
    Claim(
        id=15,
        section="3.2.2",
        statement="Two reward models, for helpfulness and for safety, beat a single one.",
        paper_value="helpfulness model 63.2 % on helpfulness and 62.8 % on safety, safety model "
        "56.2 and 64.5 %; no number for a single model",
        paper_trust=Trust.PRINTED,
        prediction="Each model is best at home, and there better than one model of the same size "
        "that learned from the own pairs of both. Shown beside: one model with as many pairs as "
        "each of the two, half of each stream.",
        threshold=threshold(
            "On each stream its own model is right more often than the other one, and than the "
            f"joint one, by more than {{gain:g}} {PAIRED}.",
            gain=0.0,
        ),
        judge=judge_two,
        measure=measure_two,
        requests=two_requests,
        recorded=True,
    ),
    Claim(
        id=16,
        section="3.2.2",
        statement="Accuracy grows with data and with the size of the reward model, and no end is "
        "in sight.",
        paper_value="figure 6, batches 1 to 14: from about 0.51 to 0.610, 0.614, 0.634 for 7B, "
        "13B, 70B",
        paper_trust=Trust.FIGURE,
        prediction="Eight times the pairs helps every width, four times the width helps with most "
        "pairs, and the last step of data still helps the widest.",
        threshold=threshold(
            "At each width most pairs beat fewest; with most pairs the widest beats the "
            "narrowest; at the widest the last step of data gains; each by more than {gain:g} "
            f"{PAIRED}.",
            gain=0.0,
        ),
        judge=judge_scale,
        measure=measure_scale,
        requests=scale_requests,
        recorded=True,
    ),
    Claim(
        id=17,
        section="3.2.2",
        statement="A tenth of helpfulness pairs helps the safety model where both answers are "
        "safe.",
        paper_value="90/10 mix; said to help most where both answers are safe; no number",
        paper_trust=Trust.DESIGN,
        prediction="With as many pairs in all, 90/10 is better than 100/0 on pairs of safe "
        "answers. About 1,200 such pairs a seed: less than one to three points cannot be seen.",
        threshold=threshold(
            f"On held-out pairs of two safe answers the mix gains more than {{gain:g}} {PAIRED}.",
            gain=0.0,
        ),
        judge=judge_mix,
        measure=measure_mix,
        requests=mix_requests,
        recorded=True,
    ),
    Claim(
        id=18,
        section="3.2.1",
        statement="A reward model is worse on answers of the next policy, until it is refreshed.",
        paper_value="accuracy degrades quickly without fresh comparisons; no number",
        paper_trust=Trust.DESIGN,
        prediction="Before the refresh the model lies further below the noise ceiling on the next "
        "policy's answers than on those it was trained for; the refresh gains part of it. One "
        "chain, both streams together: about 650 pairs, so that less than some 5 points of drop "
        "and 3 of gain cannot be seen.",
        threshold=threshold(
            "The distance below the ceiling grows, and on the same pairs the refreshed model is "
            "right more often, both by more than {gain:g} (95 % over pairs, all rounds pooled).",
            gain=0.0,
        ),
        judge=judge_drift,
        measure=measure_drift,
        requests=round_requests,
        min_seeds=1,
    ),
    Claim(
        id=19,
        section="A.3.1",
        statement="As models improve, fewer comparisons are clear and more are unsure.",
        paper_value="figure 25: clearest from about 18 to 9 %, unsure from about 25 to 38 % over "
        "14 batches",
        paper_trust=Trust.FIGURE,
        prediction="From round to round the clearest grade gets rarer and the least clear one more "
        "frequent. One chain of five rounds; a slope of less than about a point a round cannot be "
        "seen.",
        threshold=threshold(
            "In the helpfulness stream the share of the clearest grade falls, and that of the "
            "least clear one rises, by more than {slope:g} a round (95 % over comparisons).",
            slope=0.0,
        ),
        judge=judge_shares,
        measure=measure_shares,
        requests=round_requests,
        min_seeds=1,
    ),
    Claim(
        id=20,
        section="3.3",
        statement="Trained on comparisons, scores rise with the quality of single answers, too.",
        paper_value="figure 29, quality 1 to 7: helpfulness from about .24 to .55, safety from "
        "about .29 to .78",
        paper_trust=Trust.FIGURE,
        prediction="The mean of sigmoid(score) rises with gold quality, for both models.",
        threshold=threshold(
            "Over seven bins of equal numbers of held-out answers in the order of gold quality "
            "the mean of sigmoid(score) gains more than {rise:g} from first to last, and its rank "
            "correlation with the bins exceeds {monotone:g} (95 % over seeds).",
            rise=0.1,
            monotone=0.8,
        ),
        judge=judge_calibration,
        measure=measure_calibration,
        requests=calibration_requests,
        recorded=True,
    ),
    Claim(
        id=28,
        section="3.2.3",
        statement="A safety score below 0.15 nearly always means unsafe, but many are missed.",
        paper_value="precision 0.89, recall 0.55 at 0.15",
        paper_trust=Trust.PRINTED,
        prediction="High precision at a moderate recall.",
        threshold=threshold(
            "Of held-out answers with sigmoid(score) below {at:g} more than {precision:g} are "
            "labelled unsafe, and more than {recall:g} of the unsafe ones are found (95 % over "
            "seeds).",
            at=AT,
            precision=0.8,
            recall=0.3,
        ),
        judge=judge_threshold,
        measure=measure_threshold,
        requests=threshold_requests,
        recorded=True,
    ),
)
