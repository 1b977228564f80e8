"""What is said about a scene: dense captions, and questions about a part of it.

A text is a list of phrases; a phrase that states a fact carries the fact's kind, so that accuracy
can be told apart by kind. How a sentence is built follows from its place in the caption and from
the facts, never from chance: someone who sees the video can know the text exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from specvlm_sglang.tools.demo.world.scene import Actor, Scene

KINDS = ("colour", "shape", "place", "motion", "time", "meeting")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
)
PROMPTS = (
    "Describe the video.",
    "Describe the video in detail.",
    "What happens in the video?",
    "Tell me everything that you see.",
)


@dataclass(frozen=True)
class Phrase:
    """A word or mark with its leading space, and the kind of fact it states, if any."""

    text: str
    kind: str | None = None


@dataclass(frozen=True)
class Question:
    """A question about part of a scene.

    Attributes
    ----------
    kind : str
        What is asked for: "actor", "second", "place", "after" or "leaver".
    text : str
        The question.
    answer : list of Phrase
        The exact answer.
    """

    kind: str
    text: str
    answer: list[Phrase]


def plain(phrases: list[Phrase]) -> str:
    """The text of a list of phrases."""
    return "".join(phrase.text for phrase in phrases)


def caption(scene: Scene) -> list[Phrase]:
    """The whole story, one sentence an actor in order of appearance, and the clip's length."""
    phrases: list[Phrase] = []
    for index, actor in enumerate(scene.actors):
        phrases += _sentence(scene, actor, index)
    phrases += [*_words(" The video ends at second"), _time(scene.seconds), Phrase(".")]
    return [Phrase(phrases[0].text.lstrip(), phrases[0].kind), *phrases[1:]]


def questions(scene: Scene) -> list[Question]:
    """All questions about a scene, in a fixed order."""
    found: list[Question] = []
    for actor in scene.actors:
        name = f"the {actor.colour} {actor.shape}"
        answer = [*_words("It appears"), *_when(actor.start), *_where(scene, actor)]
        found.append(
            Question("actor", f"What does {name} do?", answer + _tail(scene, actor, actor.start))
        )
        where = [*_where(scene, actor), Phrase(".")]
        found.append(Question("place", f"Where does {name} appear?", [Phrase("At"), *where[1:]]))
        for second in range(actor.start + 1, actor.end):
            text = f"What does {name} do after second {NUMBERS[second]}?"
            tail = _tail(scene, actor, second)
            found.append(Question("after", text, [Phrase("It"), *tail[1:]]))
        if actor.end < scene.seconds:
            same = [a for a in scene.actors if a.end == actor.end]
            if len(same) == 1:
                colour = actor.change[1] if actor.change else actor.colour
                found.append(
                    Question(
                        "leaver",
                        f"Which shape leaves at second {NUMBERS[actor.end]}?",
                        [Phrase("The"), *_look(colour, actor.shape), *_words(" leaves.")],
                    )
                )
    for second in range(scene.seconds):
        text = f"What appears at second {NUMBERS[second]}?"
        new = [actor for actor in scene.actors if actor.start == second]
        if new:
            found.append(Question("second", text, _arrival(scene, new[0])))
    return found


def _arrival(scene: Scene, actor: Actor) -> list[Phrase]:
    return [
        *_a(actor, capital=True),
        *_words(" appears"),
        *_where(scene, actor),
        Phrase("."),
    ]


def _sentence(scene: Scene, actor: Actor, index: int) -> list[Phrase]:
    """One of three orders, by the sentence's number; then what it does, then how it ends."""
    if index % 3 == 0:
        when = [*_words(" At second"), _time(actor.start)]
        head = [*when, *_a(actor), *_words(" appears"), *_where(scene, actor)]
    elif index % 3 == 1:
        arrives = [*_words(" comes in"), *_when(actor.start)]
        head = [Phrase(" Then"), *_a(actor), *arrives, *_where(scene, actor)]
    else:
        where = _where(scene, actor)
        where[0] = Phrase(" At")
        head = [*where, *_a(actor), *_words(" shows up"), *_when(actor.start)]
    return head + _tail(scene, actor, actor.start)


def _tail(scene: Scene, actor: Actor, after: int) -> list[Phrase]:
    """What the actor does later than second `after`, to the end of the sentence."""
    phrases = [Phrase(",")]
    if actor.motion == "still":
        phrases += [Phrase(" rests", "motion")]
    else:
        phrases += [Phrase(" moves"), Phrase(f" {actor.motion}", "motion")]
    if actor.meets is not None:
        host = scene.actors[actor.meets]
        colour, shape = _look(host.colour, host.shape)
        phrases += [Phrase(","), Phrase(" meets", "meeting"), Phrase(" the")]
        phrases += [Phrase(colour.text, "meeting"), Phrase(shape.text, "meeting")]
    if actor.change is not None and actor.change[0] > after:
        second, colour_name = actor.change
        phrases += [Phrase(","), Phrase(" turns"), Phrase(f" {colour_name}", "colour")]
        phrases += _when(second)
    if actor.end < scene.seconds:
        phrases += [*_words(" and leaves"), *_when(actor.end)]
    else:
        phrases += [*_words(" and"), Phrase(" stays", "time")]
    return [*phrases, Phrase(".")]


def _a(actor: Actor, *, capital: bool = False) -> list[Phrase]:
    article = "an" if actor.colour == "orange" else "a"
    first = Phrase(article.capitalize() if capital else f" {article}")
    return [first, *_look(actor.colour, actor.shape)]


def _look(colour: str, shape: str) -> list[Phrase]:
    return [Phrase(f" {colour}", "colour"), Phrase(f" {shape}", "shape")]


def _where(scene: Scene, actor: Actor) -> list[Phrase]:
    row, column = scene.place(actor)
    return [*_words(" at the"), Phrase(f" {row}", "place"), Phrase(f" {column}", "place")]


def _when(second: int) -> list[Phrase]:
    return [*_words(" at second"), _time(second)]


def _time(second: int) -> Phrase:
    return Phrase(f" {NUMBERS[second]}", "time")


def _words(text: str) -> list[Phrase]:
    """Words without facts; a leading space of `text` belongs to the first."""
    words = text.split(" ")
    spaced = [f" {word}" for word in words[1:]]
    if words[0]:
        spaced.insert(0, words[0])
    return [Phrase(word) for word in _split_marks(spaced)]


def _split_marks(words: list[str]) -> list[str]:
    parts: list[str] = []
    for word in words:
        parts += [word[:-1], "."] if word.endswith(".") else [word]
    return parts
