"""The functions that ``import gradfix as gf`` offers beside ``gf.transport``: a file each, with its keywords."""
