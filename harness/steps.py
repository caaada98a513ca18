"""How two recorded steps differ, of which only the likeliest ids are known. Pure arithmetic."""

from __future__ import annotations

import math

from harness.record import Step

# What is left of 1 when recorded probabilities are taken away is off by as much as their sum is rounded, 2e-7 in
# float32, and in a bucket of 1e-6 that alone would look like a change: no bucket is taken for smaller than this.
ROUNDING = 1e-4


def recorded(step: Step, token: int | None = None) -> dict[int, float]:
    """Log-probabilities by id; `token` is the one that was chosen, which is known wherever it stands."""
    chosen = {} if token is None else {token: step.logprob}
    return chosen | dict(zip(step.top_ids, step.top_logprobs, strict=True))


def lowest(step: Step) -> float:
    """An id that was not recorded is at most as likely as this."""
    return min(step.top_logprobs)


def minus(one: float, other: float) -> float:
    """Two infinities that are equal have not changed."""
    return 0.0 if one == other else one - other


def kl_at_least(step: Step, other: Step, token: int | None = None) -> float:
    """KL(step || other), nats: of ids that both recorded, of those that only the first did, and of all the rest."""
    own, its = recorded(step, token), recorded(other, token)
    both = [(math.exp(own[one]), math.exp(its[one]), minus(own[one], its[one])) for one in own if one in its]
    # Each term is that of a divergence that need not add up to one: none is negative, so that no rounding of large
    # terms is left over where the two are nearly equal.
    known = math.fsum(theirs - mine + (mine * change if mine else 0.0) for mine, theirs, change in both)
    rest = max(1 - math.fsum(mine for mine, _, _ in both), ROUNDING)
    its_rest = max(1 - math.fsum(theirs for _, theirs, _ in both), ROUNDING)
    lost = [math.exp(value) for one, value in own.items() if one not in its]
    mass = min(math.fsum(lost), rest)
    if mass <= ROUNDING:
        return known + _term(rest, its_rest)
    # Of the ids that are no longer recorded as much is left as is possible, up to their old share of the rest.
    left = max(min(len(lost) * math.exp(lowest(other)), its_rest * mass / rest), ROUNDING)
    return known + _term(mass, left) + _term(max(rest - mass, ROUNDING), max(its_rest - left, ROUNDING))


def distance(step: Step, other: Step) -> float:
    """Total variation, at the least: half of the sum of all changes of probability, what only one recorded as one."""
    own = {one: math.exp(value) for one, value in recorded(step).items()}
    its = {one: math.exp(value) for one, value in recorded(other).items()}
    both = own.keys() & its.keys()
    rest = math.fsum(its[one] - own[one] for one in both)
    return (math.fsum(abs(own[one] - its[one]) for one in both) + abs(rest)) / 2


def _term(mine: float, theirs: float) -> float:
    return theirs - mine + mine * math.log(mine / theirs)
