"""Items are distributed over processes, each to exactly one."""

from __future__ import annotations

import pytest

from mask_former.cli.ranks import Ranks


def test_without_environment_variables_there_is_one_process_that_does_not_wait():
    ranks = Ranks.from_environment({})
    assert (ranks.rank, ranks.count, ranks.share([1, 2, 3])) == (0, 1, [1, 2, 3])
    done = []
    with ranks.connected():
        assert ranks.finish([3, 1], lambda: done.append(True)) == [3, 1]
    assert done == [True]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_shares_have_every_item_once_and_their_sizes_differ_by_at_most_one(count):
    items = list(range(10))
    shares = [Ranks(rank, count).share(items) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_beyond_the_number_of_processes_is_refused():
    assert Ranks.from_environment({"RANK": "1", "WORLD_SIZE": "2"}).rank == 1
    with pytest.raises(ValueError, match="RANK is 2, WORLD_SIZE 2"):
        Ranks.from_environment({"RANK": "2", "WORLD_SIZE": "2"})
