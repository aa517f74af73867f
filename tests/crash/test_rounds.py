"""A few rounds of the program that kills a server while it is written to; `make test-crash` runs 200."""

import pytest

from tests.crash.__main__ import main


@pytest.mark.timeout(180)
def test_killed_servers_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """After deaths at random times and at failpoints a server has what it acknowledged, and answers rightly."""
    main(6)

    assert "nothing lost, risen or wrong" in capsys.readouterr().out
