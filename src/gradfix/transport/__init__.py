"""The main job: inputs, checks, methods, selection, decision, pipeline, record."""

from gradfix._callable import make_callable

make_callable(__name__, "gradfix.transport.pipeline", "transport")
