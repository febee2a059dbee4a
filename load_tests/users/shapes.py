"""How many users a load has as time goes by.

    users = SHAPES["spike"](elapsed_s=14.0, seconds=30, users=40, per_second=10)

steady: all of them, `--spawn-rate` more each second until they are there. steps: a fifth, two fifths, and so on, for a
fifth of the time each. spike: a quarter, and all of them for a fifth of the time, in the middle. soak: more and more
for a tenth of the time, then all of them until the end, half an hour unless `--run-time` says otherwise.
"""

import math
from collections.abc import Callable, Mapping

STEPS = 5
QUIET = 0.25  # share of the users before and after a spike
SPIKE = (0.4, 0.6)  # from when to when, as shares of the time
RAMP = 0.1  # share of the time in which a soak gets its users
SECONDS = {"steady": 30, "steps": 60, "spike": 60, "soak": 1800}  # without --run-time

Shape = Callable[[float, float, int, float], int]  # of elapsed seconds, seconds, users, users a second: users now


def steady(elapsed_s: float, seconds: float, users: int, per_second: float) -> int:
    """All users, once they are there."""
    return min(users, math.ceil(per_second * (elapsed_s + 1)))


def steps(elapsed_s: float, seconds: float, users: int, per_second: float) -> int:
    """A stair of five steps."""
    step = min(STEPS, 1 + int(STEPS * elapsed_s / seconds))
    return math.ceil(users * step / STEPS)


def spike(elapsed_s: float, seconds: float, users: int, per_second: float) -> int:
    """All users in the middle, few before and after."""
    begin, end = SPIKE
    return users if begin <= elapsed_s / seconds < end else math.ceil(users * QUIET)


def soak(elapsed_s: float, seconds: float, users: int, per_second: float) -> int:
    """A slow begin, then all users."""
    return max(1, math.floor(users * min(1.0, elapsed_s / (RAMP * seconds))))


SHAPES: Mapping[str, Shape] = {"steady": steady, "steps": steps, "spike": spike, "soak": soak}
