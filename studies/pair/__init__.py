"""How the embedded pair of models was made."""
