"""Body plans and gaits of world4d: each draws one creature as a list of ellipsoids on a tree of
joints.

A creature heads along +x, left is +y, up is +z; the scale is free (a body is about 1 long). Every
joint angle is rest + swing · sin(2π (cycles + phase)), so a gait is a choice of phases. The rest
pose is its own mirror image in y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Vector = tuple[float, float, float]
Draw = Callable[[float, float], float]  # uniform between two numbers

# Saturated colours; a palette takes some that differ by more than PALETTE_DISTANCE in RGB.
COLOURS: tuple[Vector, ...] = (
    (0.90, 0.10, 0.12),  # red
    (1.00, 0.52, 0.05),  # orange
    (0.98, 0.85, 0.10),  # yellow
    (0.10, 0.72, 0.22),  # green
    (0.10, 0.82, 0.90),  # cyan
    (0.14, 0.34, 0.96),  # blue
    (0.58, 0.20, 0.84),  # violet
    (0.96, 0.35, 0.75),  # pink
)
PALETTE_DISTANCE = 0.55
EYE: Vector = (0.06, 0.06, 0.08)  # the same in every creature, hence no part of a palette
ZERO: Vector = (0.0, 0.0, 0.0)
ALONG_X = (1.0, 0.0, 0.0, 0.0)  # a split into front and rear


class Palette(NamedTuple):
    back: Vector
    belly: Vector
    head: Vector
    limb: Vector  # and tail; the belly's colour again in a palette of three


class Part(NamedTuple):
    """One ellipsoid and the joint that carries it. Angles are (roll, pitch, yaw) in radians; pitch
    > 0 looks down."""

    parent: int
    joint: Vector  # in the parent's frame
    centre: Vector  # of the ellipsoid, in its own frame
    radii: Vector
    upper: Vector  # colours
    lower: Vector
    rest: Vector = ZERO
    swing: Vector = ZERO
    phase: Vector = ZERO  # cycles
    # upper where n · q > level, |q| = 1
    split: tuple[float, float, float, float] = (0.0, 0.0, 1.0, -0.05)


# parts, parents first, and the amplitude of the root's translation
Body = tuple[list[Part], Vector]


def draw_palette(draw: Draw) -> Palette:
    """Three or four colours, each far from the others."""
    count = 4 if draw(0, 1) < 0.7 else 3
    chosen: list[Vector] = []
    while len(chosen) < count:
        colour = COLOURS[int(draw(0, len(COLOURS)))]
        if all(math.dist(colour, other) > PALETTE_DISTANCE for other in chosen):
            chosen.append(colour)
    back, belly, head = chosen[:3]
    return Palette(back, belly, head, chosen[3] if count == 4 else belly)


def quadruped(draw: Draw, palette: Palette) -> Body:
    """Walk, trot, pace or bound."""
    back, belly, head, limb = palette
    length, leg, thick, girth = draw(0.44, 0.54), draw(0.28, 0.4), draw(0.14, 0.17), draw(0.3, 0.38)
    neck_up, neck = draw(0.5, 1.1), draw(0.14, 0.24)
    phases = _choose(draw, _QUADRUPED_GAITS)
    bound = phases[0] == phases[1]
    nod = draw(0.05, 0.2)
    parts = [
        Part(-1, ZERO, ZERO, (length, girth, girth * draw(0.9, 1.05)), back, belly,
             swing=(draw(0.0, 0.1), draw(0.2, 0.3) if bound else draw(0.0, 0.1), draw(0.1, 0.3)),
             phase=(0.25, 0.3, draw(0, 1))),
        Part(0, (length - 0.16, 0, 0.14), (neck * 0.6, 0, 0), (neck + 0.06, 0.21, 0.22), back, belly,
             rest=(0, -neck_up, 0), swing=(0, nod, draw(0.05, 0.2)), phase=(0, draw(0, 1), draw(0, 1))),
        Part(1, (neck * 1.3, 0, 0), (0.12, 0, 0), (0.31, 0.29, 0.28), head, head,
             rest=(0, neck_up, 0), swing=(0, nod, draw(0.05, 0.25)), phase=(0, draw(0, 1), draw(0, 1))),
        Part(2, (0.4, 0, -0.09), ZERO, (0.17, 0.16, 0.13), limb, limb),
        Part(0, (-length + 0.08, 0, 0.14), (-0.12, 0, 0), (0.2, 0.13, 0.13), back, back,
             rest=(0, draw(0.1, 0.9), 0), swing=(0, draw(0, 0.2), draw(0.2, 0.4)), phase=(0, 0, draw(0, 1))),
        Part(4, (-0.25, 0, 0), (-0.1, 0, 0), (draw(0.17, 0.22), 0.15, 0.15), limb, limb,
             rest=(0, draw(-0.2, 0.5), 0), swing=(0, 0, draw(0.1, 0.3)), phase=(0, 0, draw(0, 1))),
    ]  # fmt: skip
    parts += _pair(Part(2, (0.31, 0.17, 0.12), ZERO, (0.07, 0.07, 0.08), EYE, EYE))
    ear = draw(0.12, 0.22)
    parts += _pair(Part(2, (0.0, 0.17, 0.2), (0, 0, ear * 0.6), (0.07, 0.12, ear), back, back,
                        rest=(-draw(0.2, 0.9), 0, 0)))  # fmt: skip
    stride, knee = draw(0.4, 0.7), draw(0.2, 0.45)
    for x, bend, left, right in (
        (length - 0.18, 1, *phases[:2]),
        (-length + 0.18, -1, *phases[2:]),
    ):
        upper = Part(
            0,
            (x, girth * 0.62, -girth * 0.5),
            (0, 0, -leg * 0.35),
            (thick + 0.02, thick, leg * 0.6),  # fmt: skip
            back,
            limb,
            rest=(0, -0.15 * bend, 0),
            swing=(0, stride, 0),
            split=(0, 0, 1, 0.35),
        )
        _add_limb(parts, upper, _shank(leg, thick, limb, bend * 0.3, knee), left, right)
    return parts, (draw(0.0, 0.08), 0.0, draw(0.08, 0.16) if bound else draw(0.02, 0.06))


def biped(draw: Draw, palette: Palette) -> Body:
    """Walk with counter-swinging arms, or hop with both legs and arms at once."""
    back, belly, head, limb = palette
    hop = draw(0, 1) < 0.4
    half, leg, thick, wide = draw(0.34, 0.42), draw(0.26, 0.36), draw(0.15, 0.18), draw(0.34, 0.42)
    lean, side = draw(-0.05, 0.35), 0.0 if hop else 0.5
    deep, size = draw(0.29, 0.35), draw(0.32, 0.4)
    parts = [
        Part(-1, ZERO, ZERO, (deep, wide, half), belly, back, rest=(0, lean, 0), split=(1, 0, 0, 0.1),
             swing=(draw(0.05, 0.15), draw(0.05, 0.15), draw(0.15, 0.35)), phase=(0.25, 0.2, draw(0, 1))),
        Part(0, (0, 0, half * 0.8), (0.04, 0, size * 0.7), (size, size * 0.95, size), head, head, rest=(0, -lean, 0),
             swing=(draw(0, 0.15), draw(0.05, 0.2), draw(0.1, 0.3)), phase=(0.1, draw(0, 1), draw(0, 1))),
        Part(1, (size + 0.06, 0, size * 0.55), ZERO, (0.17, 0.14, 0.11), limb, limb),
        Part(1, (-size * 0.5, 0, size * 1.45), ZERO, (draw(0.14, 0.22), 0.11, draw(0.14, 0.22)), back, back),
        Part(0, (-deep * 0.8, 0, -half * 0.6), (-0.12, 0, 0), (draw(0.2, 0.28), 0.14, 0.14), limb, limb,
             rest=(0, draw(-0.3, 0.5), 0), swing=(0, 0, draw(0.2, 0.5)), phase=(0, 0, draw(0, 1))),
    ]  # fmt: skip
    parts += _pair(
        Part(1, (size * 0.83, size * 0.42, size * 0.95), ZERO, (0.07, 0.075, 0.085), EYE, EYE)
    )
    arm, spread = draw(0.22, 0.28), draw(0.3, 0.8)
    upper = Part(
        0,
        (0, wide * 0.8, half * 0.5),
        (0, 0, -arm * 0.6),
        (thick - 0.02, thick - 0.02, arm * 0.8),  # fmt: skip
        back,
        back,
        rest=(spread, 0, 0),
        swing=(draw(0, 0.3), draw(0.5, 0.9), 0),
    )
    fore = Part(
        0,
        (0, 0, -arm * 1.2),
        (0, 0, -arm * 0.4),
        (thick - 0.02, thick - 0.02, arm * 0.7),
        limb,
        limb,  # fmt: skip
        rest=(0, -draw(0.2, 0.8), 0),
        swing=(0, draw(0.1, 0.4), 0),
        phase=(0, 0.8, 0),
    )
    _add_limb(parts, upper, fore, 0.5, 0.5 + side)
    upper = Part(
        0,
        (0, wide * 0.5, -half * 0.75),
        (0, 0, -leg * 0.35),
        (thick + 0.02, thick + 0.01, leg * 0.65),  # fmt: skip
        back,
        limb,
        rest=(0, -lean - 0.15, 0),
        swing=(0, draw(0.5, 0.8), 0),
        split=(0, 0, 1, 0.3),
    )
    ends = _add_limb(parts, upper, _shank(leg, thick, limb, 0.3, draw(0.2, 0.5)), 0.0, side)
    foot = Part(0, (0.09, 0, -leg * 0.85), ZERO, (0.23, 0.16, 0.12), head, head)
    parts += [foot._replace(parent=end) for end in ends]
    return parts, (draw(0, 0.06), 0.0, draw(0.1, 0.2) if hop else draw(0.02, 0.06))


def insect(draw: Draw, palette: Palette) -> Body:
    """Six legs in a tripod or a wave."""
    back, belly, head, limb = palette
    long, tall = draw(0.34, 0.42), draw(0.3, 0.38)
    parts = [
        Part(-1, ZERO, ZERO, (0.32, 0.31, 0.26), back, belly,
             swing=(draw(0.05, 0.15), draw(0.0, 0.12), draw(0.15, 0.35)), phase=(0.25, draw(0, 1), draw(0, 1))),
        Part(0, (-0.18, 0, 0.06), (-long * 0.95, 0, 0), (long, draw(0.32, 0.4), tall), back, belly,
             rest=(0, draw(0, 0.6), 0), swing=(0, draw(0.1, 0.25), draw(0.1, 0.3)), phase=(0, draw(0, 1), draw(0, 1))),
        Part(1, (-long * 1.85, 0, 0), ZERO, (0.19, 0.15, 0.15), limb, limb),
        Part(0, (0.22, 0, 0.08), (0.2, 0, 0), (0.28, 0.31, 0.27), head, head,
             rest=(0, draw(-0.3, 0.2), 0), swing=(0, draw(0.05, 0.2), draw(0.1, 0.3)),
             phase=(0, draw(0, 1), draw(0, 1))),
    ]  # fmt: skip
    parts += _pair(Part(3, (0.35, 0.19, 0.11), ZERO, (0.1, 0.1, 0.1), EYE, EYE))
    reach, sweep, lift, knee = draw(0.2, 0.27), draw(0.4, 0.65), draw(0.2, 0.4), draw(1.2, 1.7)
    lags = _choose(draw, ((0.0, 0.5, 0.0), (0.0, 0.33, 0.67)))
    rise = draw(0.3, 0.5)
    for x, fan, lag in zip((0.22, 0.0, -0.22), (0.75, 0.0, -0.75), lags, strict=True):
        upper = Part(0, (x, 0.22, 0.0), (0, reach * 0.8, 0), (0.13, reach, 0.13), limb, limb,
                     rest=(rise, 0, fan), swing=(lift, 0, -sweep), phase=(0.25, 0, 0))  # fmt: skip
        lower = Part(0, (0, reach * 1.5, 0), (0, 0.2, 0), (0.115, 0.28, 0.115), limb, limb,
                     rest=(-knee, 0, 0), swing=(0.2, 0, 0), phase=(0.25, 0, 0))  # fmt: skip
        _add_limb(parts, upper, lower, lag, lag + 0.5)
    return parts, (draw(0.0, 0.06), 0.0, draw(0.02, 0.07))


def bird(draw: Draw, palette: Palette) -> Body:
    """Wings flap together, the outer half late."""
    back, belly, head, limb = palette
    long, span, girth = draw(0.4, 0.5), draw(0.2, 0.27), draw(0.3, 0.36)
    flap = draw(0.45, 0.75)
    parts = [
        Part(-1, ZERO, ZERO, (long, girth, girth), back, belly, rest=(0, -draw(0, 0.6), 0),
             swing=(draw(0.05, 0.2), draw(0.05, 0.15), draw(0.15, 0.35)), phase=(draw(0, 1), 0.25, draw(0, 1))),
        Part(0, (long - 0.14, 0, 0.16), (0.1, 0, 0.1), (0.3, 0.28, 0.28), head, head,
             rest=(0, draw(0, 0.4), 0), swing=(0, draw(0.05, 0.2), draw(0.1, 0.3)), phase=(0, 0.6, draw(0, 1))),
        Part(1, (0.4, 0, 0.06), (0.06, 0, 0), (draw(0.16, 0.24), 0.12, 0.1), limb, limb),
        Part(1, (-0.06, 0, 0.38), ZERO, (0.16, 0.08, draw(0.1, 0.16)), limb, limb, rest=(0, 0.5, 0)),
        Part(0, (-long + 0.14, 0, 0.04), (-0.22, 0, 0), (0.3, draw(0.2, 0.28), 0.1), limb, limb,
             rest=(0, draw(-0.1, 0.5), 0), swing=(0, draw(0.1, 0.35), 0), phase=(0, 0.3, 0)),
    ]  # fmt: skip
    parts += _pair(Part(1, (0.29, 0.17, 0.18), ZERO, (0.07, 0.07, 0.08), EYE, EYE))
    parts += _pair(Part(0, (-0.05, 0.15, -girth * 0.8), (-0.03, 0, -0.1), (0.11, 0.1, 0.18), limb, limb,
                        rest=(0, draw(0, 0.8), 0), swing=(0, 0.35, 0)))  # fmt: skip
    inner = Part(0, (0.06, girth * 0.65, 0.14), (0, span, 0), (draw(0.26, 0.34), span * 1.25, 0.11), back, belly,
                 rest=(draw(0.0, 0.3), 0, 0), swing=(flap, draw(0, 0.3), 0), phase=(0, 0.25, 0),
                 split=(0, 0, 1, 0))  # fmt: skip
    outer = Part(0, (-0.03, span * 1.8, 0), (-0.05, span * 0.7, 0), (draw(0.22, 0.3), span, 0.1), limb, head,
                 rest=(draw(-0.3, 0.0), 0, -draw(0, 0.5)), swing=(flap * 0.8, 0, 0), phase=(-0.17, 0, 0),
                 split=(0, 0, 1, 0))  # fmt: skip
    _add_limb(parts, inner, outer, 0.0, 0.0)
    return parts, (draw(0, 0.06), 0.0, -draw(0.04, 0.12))


def fish(draw: Draw, palette: Palette) -> Body:
    """A wave runs down the body to the tail fin."""
    back, belly, head, limb = palette
    tall, wide, beat, lag = draw(0.36, 0.46), draw(0.26, 0.33), draw(0.3, 0.5), draw(0.1, 0.2)
    parts = [
        Part(-1, ZERO, ZERO, (0.44, wide, tall), back, belly,
             swing=(draw(0, 0.15), draw(0.05, 0.2), draw(0.2, 0.4)), phase=(draw(0, 1), draw(0, 1), draw(0, 1))),
        Part(0, (0.18, 0, 0), (0.2, 0, -0.02), (0.33, wide * 0.95, tall * 0.85), head, head,
             swing=(0, 0, draw(0.1, 0.25)), phase=(0, 0, lag)),
        Part(1, (0.5, 0, -0.08), ZERO, (0.13, 0.14, 0.11), limb, limb),
        Part(0, (-0.22, 0, 0), (-0.2, 0, 0), (0.34, wide * 0.75, tall * 0.72), back, belly,
             swing=(0, 0, beat), phase=(0, 0, -lag)),
        Part(3, (-0.42, 0, 0), (-0.18, 0, 0.16), (0.17, 0.1, 0.28), limb, limb,
             rest=(0, -0.1, 0), swing=(0, 0, beat * 1.2), phase=(0, 0, -2 * lag)),
        Part(4, ZERO, (-0.18, 0, -0.16), (0.16, 0.1, draw(0.2, 0.28)), limb, limb, rest=(0, 0.2, 0)),
        Part(0, (-0.05, 0, tall * 0.85), (-0.05, 0, 0.08), (draw(0.22, 0.3), 0.1, draw(0.16, 0.24)), head, head,
             rest=(0, -0.3, 0)),
        Part(3, (-0.18, 0, -tall * 0.55), (0, 0, -0.05), (0.15, 0.09, 0.15), head, head, rest=(0, 0.5, 0)),
    ]  # fmt: skip
    parts += _pair(Part(1, (0.36, wide * 0.68, 0.1), ZERO, (0.085, 0.07, 0.085), EYE, EYE))
    fin = Part(0, (0.1, wide * 0.8, -tall * 0.3), (-0.08, draw(0.16, 0.22), 0), (0.18, 0.26, 0.1), limb, limb,
               rest=(-draw(0.1, 0.6), 0, draw(0.2, 0.6)), swing=(draw(0.3, 0.7), 0, draw(0.2, 0.4)),
               phase=(0, 0, 0.25))  # fmt: skip
    parts += _pair(fin, 0.0, _choose(draw, (0.0, 0.5)))
    return parts, (draw(0, 0.06), 0.0, draw(0.03, 0.1))


def snake(draw: Draw, palette: Palette) -> Body:
    """A chain that winds from side to side, or arches like a caterpillar; stubby feet under it."""
    back, belly, head, limb = palette
    arch = draw(0, 1) < 0.4
    bend, lag, thick, link = draw(0.35, 0.55), draw(0.13, 0.2), draw(0.24, 0.29), draw(0.22, 0.26)
    raised = draw(0.2, 0.45)

    def segment(parent: int, ahead: int, step: int) -> Part:
        """Link number `step` (1, 2, ...) before (ahead = 1) or behind the middle one."""
        side, lift = (0.06, bend * 0.8) if arch else (bend, 0.06)
        thin = thick * (1 - 0.09 * step * (ahead < 0))
        colours = (limb, limb) if ahead < 0 and step == 3 else (back, belly)
        return Part(
            parent,
            (ahead * link * (0.5 if step == 1 else 1), 0, 0),
            (ahead * link * 0.5, 0, 0),
            (link * 0.95, thin, thin),
            *colours,
            rest=(0, -raised * (ahead > 0), 0),  # fmt: skip
            swing=(0, lift, -side * ahead),
            phase=(0, ahead * lag * step, ahead * lag * step),
        )

    parts = [Part(-1, ZERO, ZERO, (link, thick, thick), back, belly,
                  swing=(draw(0, 0.2), draw(0, 0.15), draw(0.2, 0.4)),
                  phase=(draw(0, 1), draw(0, 1), draw(0, 1)))]  # fmt: skip
    for ahead, count in ((1, 2), (-1, 3)):
        for step in range(1, count + 1):
            parts.append(segment(0 if step == 1 else len(parts) - 1, ahead, step))
    parts += [
        Part(2, (link, 0, 0), (0.16, 0, 0), (0.32, draw(0.28, 0.34), 0.28), head, head, rest=(0, 1.6 * raised, 0),
             swing=(0, draw(0.05, 0.2), draw(0.1, 0.35)), phase=(0, draw(0, 1), draw(0, 1))),
        Part(6, (0.46, 0, -0.07), ZERO, (0.15, 0.14, 0.1), limb, limb),
    ]  # fmt: skip
    parts += _pair(Part(6, (0.33, 0.18, 0.14), ZERO, (0.08, 0.08, 0.09), EYE, EYE))
    horn = Part(
        6,
        (0.04, 0.16, 0.2),
        (0, 0, 0.1),
        (0.09, 0.09, draw(0.14, 0.2)),
        limb,
        limb,
        rest=(-0.4, 0, 0),
    )
    parts += _pair(horn)
    for carrier in (1, 3):
        foot = Part(carrier, (0, thick * 0.65, -thick * 0.6), (0, 0.03, -0.1), (0.13, 0.12, 0.18), limb, limb,
                    rest=(0.4, 0, 0), swing=(0.2, 0.6, 0))  # fmt: skip
        parts += _pair(foot, 0.0, 0.5)
    return parts, (draw(0, 0.06), draw(0, 0.05), draw(0.02, 0.07))


def turtle(draw: Draw, palette: Palette) -> Body:
    """A broad shell rowed by four flippers: diagonal pairs, or all at once."""
    back, belly, head, limb = palette
    long, wide, tall = draw(0.44, 0.52), draw(0.4, 0.48), draw(0.3, 0.38)
    parts = [
        Part(-1, ZERO, ZERO, (long, wide, tall), back, belly, split=(0, 0, 1, -0.25),
             swing=(draw(0.05, 0.2), draw(0.05, 0.2), draw(0.15, 0.35)), phase=(draw(0, 1), draw(0, 1), draw(0, 1))),
        Part(0, (long - 0.1, 0, 0), (0.1, 0, 0), (0.22, 0.18, 0.17), belly, belly, rest=(0, -draw(0.2, 0.8), 0),
             swing=(0, draw(0.05, 0.25), draw(0.1, 0.35)), phase=(0, draw(0, 1), draw(0, 1))),
        Part(1, (0.22, 0, 0), (0.12, 0, 0.02), (0.3, 0.27, 0.26), head, head, rest=(0, draw(0.2, 0.6), 0)),
        Part(2, (0.4, 0, -0.05), ZERO, (0.14, 0.13, 0.11), limb, limb),
        Part(0, (-long + 0.04, 0, -0.02), (-0.1, 0, 0), (draw(0.18, 0.26), 0.14, 0.12), head, head,
             swing=(0, draw(0.1, 0.3), draw(0.2, 0.5)), phase=(0, draw(0, 1), draw(0, 1))),
    ]  # fmt: skip
    parts += _pair(Part(2, (0.3, 0.17, 0.14), ZERO, (0.075, 0.075, 0.085), EYE, EYE))
    row, beat = draw(0.35, 0.6), draw(0.35, 0.7)
    together = draw(0, 1) < 0.5
    for x, fan, size, lag in (
        (long * 0.6, 0.3, draw(0.26, 0.34), 0.0),
        (-long * 0.65, -0.6, draw(0.2, 0.26), 0.5),
    ):
        upper = Part(0, (x, wide * 0.6, -0.08), (0, size * 0.8, 0), (0.21, size, 0.12), limb, limb,
                     rest=(-0.15, 0, fan), swing=(beat, 0, -row), phase=(0.25, 0, 0))  # fmt: skip
        tip = Part(0, (0, size * 1.45, 0), (-0.04, 0.08, 0), (0.18, 0.2, 0.11), limb, limb,
                   rest=(0, 0, -0.4), swing=(beat * 0.6, 0, 0), phase=(0.1, 0, 0))  # fmt: skip
        _add_limb(parts, upper, tip, lag, lag if together else lag + 0.5)
    return parts, (draw(0.03, 0.08), 0.0, draw(0.02, 0.07))


PLANS: tuple[Callable[[Draw, Palette], Body], ...] = (
    quadruped,
    biped,
    insect,
    bird,
    fish,
    snake,
    turtle,
)

# phases of the left front, right front, left rear and right rear legs
_QUADRUPED_GAITS = (
    (0.0, 0.5, 0.75, 0.25),  # walk
    (0.0, 0.5, 0.5, 0.0),  # trot
    (0.0, 0.5, 0.0, 0.5),  # pace
    (0.0, 0.0, 0.4, 0.4),  # bound
)


def _choose(draw: Draw, options: tuple):
    return options[int(draw(0, len(options)))]


def _mirrored(part: Part) -> Part:
    """Reflected in the plane y = 0: axial quantities keep y, polar ones flip it."""

    def polar(v: Vector) -> Vector:
        return (v[0], -v[1], v[2])

    def axial(v: Vector) -> Vector:
        return (-v[0], v[1], -v[2])

    n = part.split
    return part._replace(
        joint=polar(part.joint), centre=polar(part.centre), rest=axial(part.rest), swing=axial(part.swing),
        split=(n[0], -n[1], n[2], n[3]),
    )  # fmt: skip


def _at_phase(part: Part, cycles: float) -> Part:
    return part._replace(
        phase=(part.phase[0] + cycles, part.phase[1] + cycles, part.phase[2] + cycles)
    )


def _pair(part: Part, left: float = 0.0, right: float = 0.0) -> list[Part]:
    """A left part and its mirror image, at their phases of the cycle."""
    return [_at_phase(part, left), _at_phase(_mirrored(part), right)]


def _add_limb(
    parts: list[Part], upper: Part, lower: Part, left: float, right: float
) -> tuple[int, int]:
    """Append a pair of two-piece limbs; returns where the lower pieces stand."""
    first = len(parts)
    uppers, lowers = _pair(upper, left, right), _pair(lower, left, right)
    parts += [*uppers, *(piece._replace(parent=first + k) for k, piece in enumerate(lowers))]
    return first + 2, first + 3


def _shank(leg: float, thick: float, colour: Vector, bend: float, knee: float) -> Part:
    """The lower half of a leg, bending a quarter of a cycle ahead of the hip."""
    return Part(0, (0, 0, -leg * 0.9), (0, 0, -leg * 0.45), (thick, thick, leg * 0.6), colour, colour,
                rest=(0, bend, 0), swing=(0, knee, 0), phase=(0, 0.25, 0))  # fmt: skip
