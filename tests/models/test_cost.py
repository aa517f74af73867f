"""What is learnt of the cost of executions."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookwire_server.models.cost import Cost


def taught(*executions: tuple[int, float]) -> Cost:
    cost = Cost()
    for size, seconds in executions:
        cost.learn(size, seconds)
    return cost


@given(
    fixed=st.floats(0, 0.1),
    slope=st.floats(1e-6, 0.1),
    sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=60).filter(lambda sizes: max(sizes) > 2 * min(sizes)),
)
def test_line_is_found(fixed: float, slope: float, sizes: list[int]) -> None:
    """Executions that cost so much each and so much for their size are foretold, at sizes seen and unseen."""
    cost = taught(*[(size, fixed + slope * size) for size in sizes * 8])

    for size in (1, 10, 2000):
        assert cost.seconds(size) == pytest.approx(fixed + slope * size, rel=0.02, abs=1e-9)


def test_nothing_is_claimed_before_the_first() -> None:
    """Before any execution no time is expected, no size fits one, and the beginning of another may cost anything."""
    cost = Cost()

    assert (cost.seconds(100), cost.size(1.0), cost.overhead) == (0.0, 0.0, inf)


def test_one_size_tells_nothing_of_the_beginning() -> None:
    """While all executions are of one size, time is taken to go with the size."""
    cost = taught(*[(10, 0.5)] * 5)

    assert cost.seconds(20) == pytest.approx(1.0)
    assert cost.size(0.25) == pytest.approx(5.0)
    assert cost.overhead == inf


def test_size_is_the_inverse_of_seconds() -> None:
    """The size that fits a time is the one expected to take it."""
    cost = taught((8, 0.008), (64, 0.036), (8, 0.008), (64, 0.036))

    assert cost.seconds(cost.size(0.1)) == pytest.approx(0.1)
    assert cost.overhead == pytest.approx(8.0)


def test_a_stall_is_not_believed_at_once() -> None:
    """One execution that a stall made a thousand times as long moves what is expected by little."""
    cost = taught(*[(8, 0.008), (64, 0.036)] * 20, (8, 8.0))

    assert cost.seconds(8) < 2 * 0.008


def test_a_slower_machine_is_noticed() -> None:
    """When executions take ten times as long for good, so does what is expected, within some hundred."""
    cost = taught(*[(8, 0.008), (64, 0.036)] * 50, *[(8, 0.08), (64, 0.36)] * 150)

    assert cost.seconds(64) == pytest.approx(0.36, rel=0.05)
