"""A small procedural world: coloured shapes that come, move, change, meet and leave.

`scene` decides what happens, `render` draws it, `language` tells it. Everything follows from a
seed, so that each clip comes with its exact description.
"""

from specvlm_sglang.tools.demo.world.language import Phrase, Question, caption, questions
from specvlm_sglang.tools.demo.world.render import render, write_clip
from specvlm_sglang.tools.demo.world.scene import Actor, Scene, make_scene

__all__ = [
    "Actor",
    "Phrase",
    "Question",
    "Scene",
    "caption",
    "make_scene",
    "questions",
    "render",
    "write_clip",
]
