"""The lab: an embedded pair of independently pre-trained models, and tasks to move between them."""
