"""Turns against a plain model, and the share that each caller gets whatever others send."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_serve.service.scheduling.turns import Turn, Turns

_ITEMS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=80)


def _filled(owners: list[tuple[int, int]]) -> Turns[tuple[int, int, int]]:
    turns: Turns[tuple[int, int, int]] = Turns()
    for number, (caller, request) in enumerate(owners):
        turns.extend(Turn(caller, request), [(caller, request, number)])
    return turns


def _drained(turns: Turns[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    left = []
    while turns:
        before = turns.n_requests
        first, item = turns.first(), turns.pop()
        assert item is not None
        assert item == first
        left.append(item)
        assert before - turns.n_requests in (0, 1)
    assert turns.n_requests == 0
    assert turns.pop() is None
    return left


@given(_ITEMS)
def test_every_item_leaves_once_and_those_of_a_request_in_their_order(
    owners: list[tuple[int, int]],
) -> None:
    left = _drained(_filled(owners))

    assert sorted(number for *_, number in left) == list(range(len(owners)))
    of_request: dict[tuple[int, int], list[int]] = defaultdict(list)
    for caller, request, number in left:
        of_request[caller, request].append(number)
    assert all(numbers == sorted(numbers) for numbers in of_request.values())


def _check_turns(owners: list[int]) -> None:
    """Between two turns of an owner, each other one that still waits has exactly one."""
    waiting = Counter(owners)
    turns_since = {owner: Counter[int]() for owner in waiting}  # of others, since its last turn
    for mine in owners:
        waiting[mine] -= 1
        turns_since[mine].clear()
        for other, turns in turns_since.items():
            if other != mine and waiting[other]:
                turns[mine] += 1
                assert turns[mine] == 1, f"{mine} had two turns and {other} none"


@given(_ITEMS)
def test_nobody_has_two_turns_before_everybody_who_waits_has_one(
    owners: list[tuple[int, int]],
) -> None:
    left = _drained(_filled(owners))

    _check_turns([caller for caller, *_ in left])
    for caller in {caller for caller, *_ in left}:
        _check_turns([request for owner, request, _ in left if owner == caller])


@pytest.mark.parametrize("others", [1, 2, 4, 16, 63])
@pytest.mark.parametrize("images", [8, 64])
def test_a_single_item_waits_for_one_item_of_each_other_caller(others: int, images: int) -> None:
    turns: Turns[int] = Turns()
    for caller in range(others):
        turns.extend(Turn(caller, 0), [caller] * images)
    turns.extend(Turn("single", 0), [-1])

    assert [turns.pop() for _ in range(others + 1)] == [*range(others), -1]


@given(_ITEMS, st.tuples(st.integers(0, 4), st.integers(0, 3)))
def test_discarding_a_request_leaves_the_others_in_their_order(
    owners: list[tuple[int, int]], discarded: tuple[int, int]
) -> None:
    turns = _filled(owners)
    removed = turns.discard(Turn(*discarded))

    assert [number for *_, number in removed] == [
        number for number, owner in enumerate(owners) if owner == discarded
    ]
    kept = [owner for owner in owners if owner != discarded]
    assert len(turns) == len(kept)
    assert turns.n_requests == len(set(kept))
    assert Counter(item[:2] for item in _drained(turns)) == Counter(kept)


@given(_ITEMS, st.sets(st.integers(0, 80)))
def test_removed_items_are_gone_and_the_others_keep_their_order(
    owners: list[tuple[int, int]], removed: set[int]
) -> None:
    turns = _filled(owners)
    for number in removed:  # some of which are not there
        owner = owners[number] if number < len(owners) else (0, 0)
        turns.remove(Turn(*owner), (*owner, number))

    left = [owner for number, owner in enumerate(owners) if number not in removed]
    assert len(turns) == len(left)
    assert turns.n_requests == len(set(left))
    drained = _drained(turns)
    assert sorted(number for *_, number in drained) == sorted(set(range(len(owners))) - removed)
    for owner in set(left):
        of_request = [number for *one, number in drained if tuple(one) == owner]
        assert of_request == sorted(of_request)


@given(_ITEMS, st.sets(st.integers(0, 4)))
def test_a_caller_that_is_not_eligible_keeps_its_turn(
    owners: list[tuple[int, int]], held: set[int]
) -> None:
    turns = _filled(owners)
    before = turns.first() if turns else None
    passed = []
    while (item := turns.pop(lambda caller: caller not in held)) is not None:
        passed.append(item)

    assert {caller for caller, *_ in passed}.isdisjoint(held)
    assert len(passed) == sum(caller not in held for caller, _ in owners)
    if before is not None and before[0] in held:
        assert turns.first() == before
