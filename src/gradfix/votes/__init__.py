"""Votes: the sign of each sample's own gradient, summed over samples, at the price of one backward pass."""

from gradfix._callable import make_callable
from gradfix.votes.counting import count_votes
from gradfix.votes.isolation import Loss
from gradfix.votes.plain import mean_gradient
from gradfix.votes.stability import Stability
from gradfix.votes.votes import Votes

__all__ = ["Loss", "Stability", "Votes", "count_votes", "mean_gradient"]

make_callable(__name__, "gradfix.transport.functions.votes", "votes")
