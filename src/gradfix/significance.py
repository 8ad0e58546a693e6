"""How many net votes are more than luck: the tail of N fair coins, exact."""

from fractions import Fraction

from gradfix.errors import GradfixError


def significant_votes(voters: int, level: float) -> int:
    """Find the smallest a ≥ 1 with P(S ≥ a) ≤ ``level``, S the net heads of N fair coins.

    S = 2K − N for K heads, so P(S ≥ a) = P(K ≥ (N + a) / 2): the one-sided sign test. S has the parity of N; an a of
    the other parity has the tail of a + 1, which is how net votes are judged where a voter abstained.

    Args:
        voters: N.
        level: The largest probability that still counts as more than luck, in [0, ½].

    Returns:
        a, in [1, N + 1]; N + 1 where not even all N votes are significant.

    Raises:
        GradfixError: if there can't be so many voters, or the level is none.
    """
    if voters < 0:
        raise GradfixError(f"voters: expected at least 0, found {voters}")
    if not 0 <= level <= 0.5:
        raise GradfixError(f"confidence level: expected a probability from 0 to 0.5, found {level}")
    # In integers: of the 2^N equally likely outcomes, as many as this may lie in the tail.
    allowed = int(Fraction(level) * 2**voters)
    heads, outcomes, tail = voters + 1, 1, 0
    while heads > 0 and tail + outcomes <= allowed:
        tail += outcomes
        heads -= 1
        # From the outcomes with `heads` heads to those with one less.
        outcomes = outcomes * heads // (voters - heads + 1)
    # `heads` is the fewest whose tail is allowed; one net vote less lies between two values of S.
    return voters + 1 if heads > voters else max(1, 2 * heads - voters - 1)
