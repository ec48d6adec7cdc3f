import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.batching import epoch_steps, planned_steps, token_budget_batches
from common.rows import SAMPLES, read_labelled_rows

lengths_lists = st.lists(st.integers(1, 50), max_size=60)
some_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=80)


@pytest.fixture(scope="module")
def sample_lengths(tokenizer) -> list[int]:
    return [len(ids) for ids in tokenizer(read_labelled_rows([SAMPLES / "train.csv"]).texts)]


def padding_of(lengths, batch):
    return sum(max(lengths[i] for i in batch) - lengths[j] for j in batch)


@given(lengths_lists, st.integers(1, 200), st.one_of(st.just(math.inf), st.integers(0, 40)))
def test_a_batch_keeps_the_token_budget_unless_it_is_one_row(lengths, budget, padding):
    for batch in token_budget_batches(lengths, budget, padding):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths_lists, st.integers(1, 200), st.one_of(st.just(math.inf), st.integers(0, 40)))
def test_every_row_is_in_exactly_one_batch(lengths, budget, padding):
    batches = token_budget_batches(lengths, budget, padding)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))


@given(lengths_lists, st.integers(1, 200), st.integers(0, 40))
def test_no_batch_has_more_padding_than_it_may(lengths, budget, padding):
    assert all(padding_of(lengths, batch) <= padding for batch in token_budget_batches(lengths, budget, padding))


@given(lengths_lists, st.integers(1, 200), st.one_of(st.just(math.inf), st.integers(0, 40)))
def test_a_batch_ends_only_where_another_row_would_be_too_much(lengths, budget, padding):
    for batch, after in itertools.pairwise(token_budget_batches(lengths, budget, padding)):
        longer = [*batch, after[0]]
        over = len(longer) * max(lengths[i] for i in longer) > budget
        assert over or padding_of(lengths, longer) > padding


@given(lengths_lists, st.integers(1, 200))
def test_the_longest_rows_come_first(lengths, budget):
    in_order = [lengths[i] for batch in token_budget_batches(lengths, budget) for i in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_little_of_the_sample_texts_batches_is_padding(sample_lengths):
    batches = token_budget_batches(sample_lengths, 2048)
    assert sum(sample_lengths) / sum(len(b) * max(sample_lengths[i] for i in b) for b in batches) > 0.9


@given(some_lengths, st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_row_in_exactly_one_step(lengths, batch_size, seed, epoch):
    steps = epoch_steps(len(lengths), batch_size, seed, epoch)
    assert sorted(itertools.chain(*steps)) == list(range(len(lengths)))


@given(some_lengths, st.integers(1, 40), st.integers(0, 3))
def test_steps_are_as_few_as_can_be_and_differ_by_one_row_at_most(lengths, batch_size, epoch):
    sizes = [len(step) for step in epoch_steps(len(lengths), batch_size, 0, epoch)]
    assert len(sizes) == math.ceil(len(lengths) / batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_row_too_many_is_not_left_a_step_of_its_own():
    assert sorted(len(step) for step in epoch_steps(33, 32, 0, 0)) == [16, 17]


def test_the_same_arguments_give_the_same_steps(sample_lengths):
    assert epoch_steps(len(sample_lengths), 32, 5, 7) == epoch_steps(len(sample_lengths), 32, 5, 7)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_or_seed_gives_other_steps(sample_lengths, seed, epoch):
    one, other = epoch_steps(len(sample_lengths), 32, 0, 0), epoch_steps(len(sample_lengths), 32, seed, epoch)
    assert not {frozenset(step) for step in one} & {frozenset(step) for step in other}


def meetings(steps):
    return {pair for step in steps for pair in itertools.combinations(sorted(step), 2)}


def test_rows_meet_again_in_the_next_epoch_less_than_twice_as_often_as_by_chance(sample_lengths):
    plans = [meetings(epoch_steps(len(sample_lengths), 32, 0, epoch)) for epoch in range(6)]
    again = sum(len(plan & following) for plan, following in itertools.pairwise(plans))
    rows = len(sample_lengths)
    chance = len(plans[0]) / (rows * (rows - 1) / 2)
    assert again / sum(map(len, plans[:-1])) < 2 * chance


@given(some_lengths, st.integers(1, 40), st.data())
def test_from_any_step_on_the_plan_is_the_tail_of_the_whole(lengths, batch_size, data):
    last = 3 * math.ceil(len(lengths) / batch_size)
    first = data.draw(st.integers(0, last))
    whole = list(planned_steps(len(lengths), batch_size, 0, range(last)))
    assert list(planned_steps(len(lengths), batch_size, 0, range(first, last))) == whole[first:]


def test_the_plan_takes_epoch_after_epoch(sample_lengths):
    rows = len(sample_lengths)
    planned = list(planned_steps(rows, 32, 3, range(2 * math.ceil(rows / 32))))
    assert planned == [*epoch_steps(rows, 32, 3, 0), *epoch_steps(rows, 32, 3, 1)]


def test_tasks_of_different_length_are_mixed_in_every_step_as_by_chance():
    news, tweets = 1200, 2400  # one behind the other
    counts = [sum(row < news for row in step) for step in planned_steps(news + tweets, 32, 0, range(113))]
    by_chance = (32 * (1 / 3) * (2 / 3)) ** 0.5  # the deviation of a draw of 32 rows
    assert np.std(counts) < 1.3 * by_chance
