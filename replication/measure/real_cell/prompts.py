"""The short questions that the teacher answers. No subject is in both parts."""

import numpy as np

from grace.errors import InputError

FORMS = (
    "What is {}?",
    "Tell me about {}.",
    "Explain {} to a child.",
    "Why does {} matter?",
    "Write a short paragraph about {}.",
    "Give me three facts about {}.",
    "How would you describe {}?",
    "What should a beginner know about {}?",
    "Write a short story about {}.",
    "What is a common mistake people make with {}?",
    "Summarize what is known about {}.",
    "What questions could one ask about {}?",
)
_SUBJECTS = """
gravity; bread; the moon; chess; rain; bees; coffee; the heart; volcanoes; music; glass; trains;
the ocean; sleep; money; paper; magnets; gardens; mirrors; maps; salt; bridges; wind; clocks;
rice; deserts; whales; electricity; the alphabet; fire; snow; tea; iron; spiders; rivers;
bicycles; painting; memory; cheese; forests; light; soap; batteries; dreams; wheat; stars;
friendship; horses; computers; sugar; mountains; wool; airplanes; teeth; poetry; ice; trees;
cooking; history; dogs; the sun; gold; numbers; libraries; butter; earthquakes; elephants;
language; concrete; apples; exercise; sailing; pottery; bats; honey; windows; honesty; tunnels;
vaccines; pencils; tigers; democracy; steam engines; fish; dancing; atoms; markets; rubber;
winter; photography; hospitals; oranges; swimming; satellites; courage; cotton; owls; theater;
cities; fever; football; ships; silk; weather forecasts; kindness; oil; potatoes; gloves;
lightning; schools; hiking; mushrooms; robots; wolves; law; eggs; sculpture; islands; probability;
wine; camels; recycling; leather; patience; comets
"""
SUBJECTS = tuple(" ".join(_SUBJECTS.split()).split("; "))
HELD_OUT = 25
"""So many subjects, drawn by the seed, are in held-out questions alone."""


def questions(training: int, held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Different questions for training, and different ones about other subjects.

    Raises:
        InputError: for more questions than there are.
    """
    rng = np.random.default_rng(seed)
    order = [SUBJECTS[i] for i in rng.permutation(len(SUBJECTS))]
    parts = []
    for count, subjects in ((training, order[HELD_OUT:]), (held_out, order[:HELD_OUT])):
        every = [form.format(subject) for subject in subjects for form in FORMS]
        if count > len(every):
            raise InputError(f"{count} questions are asked for; there are {len(every)}")
        parts.append([every[i] for i in rng.permutation(len(every))[:count]])
    return parts[0], parts[1]
