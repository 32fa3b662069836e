"""Free text about a scene, which has more than one right wording.

A caption names every object and its place. In which order it does, which of two words it takes
for a colour, a shape or a place, and how it joins them is free: a model that knows the scene
still cannot know the next word, as with the long captions that published models are tuned on.
"""

from dataclasses import replace

import numpy as np

from replication.data.world.scenes import HALF, Scene, Thing, pick

OPENINGS = ("There is a", "The drawing has a", "One sees a", "It shows a")
JOINTS = (", a", " and a", "; a", " with a", " then a")
PLACES = (" at", " in")
"""The fixed parts of captions: one token each."""


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a scene; the generator chooses among the right wordings."""
    order = [scene.things[int(place)] for place in rng.permutation(len(scene.things))]
    parts = [pick(rng, OPENINGS)]
    for index, thing in enumerate(order):
        if index:
            parts.append(pick(rng, JOINTS))
        parts.append(f" {_noun(scene, thing, rng)}{pick(rng, PLACES)} ")
        names = pick(rng, (scene.look.quadrants, scene.look.places))
        parts.append(names[thing.quarter])
    return "".join(parts) + "."


def _noun(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    if thing.kind == "sign":
        return scene.look.say(thing.name)
    words = (thing.color, thing.kind)
    return " ".join(
        scene.look.synonyms[word] if other else word
        for word, other in zip(words, rng.random(2) < 0.5, strict=True)
    )


def mistaken(scene: Scene, rng: np.random.Generator, share: float) -> Scene:
    """The scene as one sees it who errs in a share of the objects: in colour, shape, text or
    quarter of the image."""
    things = [
        _mistake(scene, thing, rng) if rng.random() < share else thing for thing in scene.things
    ]
    return replace(scene, things=tuple(things))


def _mistake(scene: Scene, thing: Thing, rng: np.random.Generator) -> Thing:
    def other(pool, value):
        return pick(rng, [item for item in pool if item != value])

    look, fault = scene.look, int(rng.integers(3))
    if fault == 0:
        quarter = other(range(4), thing.quarter)
        return replace(thing, row=quarter // 2 * HALF, column=quarter % 2 * HALF)
    if thing.kind == "sign":
        return replace(thing, text=other(look.signs, thing.text))
    if fault == 1:
        return replace(thing, color=other(list(look.colors), thing.color))
    return replace(thing, kind=other(look.shapes, thing.kind))
