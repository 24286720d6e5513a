"""Rounds end where something is due, and nowhere else but after their local steps."""

from hypothesis import given
from hypothesis import strategies as st

from plays import Play
from sparknet.config import Data, Net, Run, RunConfig, Sync
from sparknet.training.coordination.messages import Committed, Welcome
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import RunProgress


def ends(plan: RoundPlan, start: int = 0) -> list[int]:
    """Where the rounds of a run end."""
    found = [start]
    while found[-1] < plan.iterations:
        found.append(found[-1] + plan.steps_from(found[-1]))
    return found[1:]


def test_a_round_ends_where_something_is_due_and_with_the_run() -> None:
    plan = RoundPlan(local_steps=10, eval_iterations=9, checkpoint_iterations=7, iterations=25)
    assert ends(plan) == [7, 9, 14, 18, 21, 25]
    assert [end for end in ends(plan) if plan.evaluates(1, end)] == [9, 18]
    assert [end for end in ends(plan) if plan.checkpoints(1, end)] == [7, 14, 21]


def test_what_is_due_by_rounds_ends_none() -> None:
    plan = RoundPlan(local_steps=10, eval_every=2, checkpoint_every=3, iterations=35)
    assert ends(plan) == [10, 20, 30, 35]
    assert [round for round in range(1, 7) if plan.evaluates(round, 10 * round)] == [2, 4, 6]
    assert [round for round in range(1, 7) if plan.checkpoints(round, 10 * round)] == [3, 6]
    assert not RoundPlan(local_steps=10).evaluates(10, 100)


@given(
    steps=st.integers(1, 30),
    evaluations=st.integers(0, 20),
    checkpoints=st.integers(0, 20),
    iterations=st.integers(1, 200),
    start=st.integers(0, 199),
)
def test_nothing_is_missed_and_no_round_is_longer(
    steps: int, evaluations: int, checkpoints: int, iterations: int, start: int
) -> None:
    plan = RoundPlan(
        local_steps=steps,
        eval_iterations=evaluations,
        checkpoint_iterations=checkpoints,
        iterations=iterations,
    )
    found = ends(plan, start)
    if start >= iterations:
        assert found == []
        return
    rounds = [stop - begin for begin, stop in zip([start, *found], found, strict=False)]
    assert all(1 <= round <= steps for round in rounds)
    assert sum(rounds) == iterations - start
    due = {at for every in (evaluations, checkpoints) if every for at in range(every, iterations, every)}
    assert {at for at in due if at > start} <= set(found)
    # The same from wherever a run goes on, and counted as they come.
    assert plan.count_rounds(start, iterations) == len(found)
    assert plan.iteration_after(len(found), start) == iterations
    middle = found[len(found) // 2]
    assert ends(plan, middle) == [end for end in found if end > middle]


def test_rounds_are_as_long_as_they_ever_were_where_nothing_is_counted_in_iterations() -> None:
    plan = RoundPlan(local_steps=3, eval_every=2)
    assert plan.iteration_after(5, 0) == 15
    assert plan.count_rounds(0, 14) == 5
    assert plan.count_rounds(9, 9) == 0


def test_the_settings_say_what_is_counted_how() -> None:
    data = Data(source="digits", validation_fraction=0.2)
    run = Run(iterations=25, eval_iterations=9, checkpoint_every=4)
    plan = RoundPlan.of(RunConfig(data=data, net=Net(name="lenet"), run=run, sync=Sync(local_steps=10)))
    assert plan == RoundPlan(local_steps=10, eval_iterations=9, checkpoint_every=4, iterations=25)
    run = Run(rounds=3, eval_every=2, checkpoint_iterations=7)
    plan = RoundPlan.of(RunConfig(data=data, net=Net(name="lenet"), run=run, sync=Sync(local_steps=10)))
    assert plan == RoundPlan(local_steps=10, eval_every=2, checkpoint_iterations=7)


def test_all_hear_how_long_the_next_round_is_and_what_is_due_comes_there() -> None:
    counted = {"local_steps": 10, "eval_iterations": 9, "checkpoint_iterations": 7, "iterations": 25}
    play = Play(rounds=6, evaluation_parts=1, **counted)
    play.begin(0, 1)
    first = play.answer(0)
    assert isinstance(first, Welcome)
    told = [(first.iteration, first.steps)]
    handed_out: list[tuple[int, str]] = []
    while play.coordinator.status == "running":
        exchanges = play.quorum(0, 1)
        answers = [play.vote(slot, of=exchange) for slot, exchange in enumerate(exchanges)]
        last = answers[-1]
        assert isinstance(last, Committed)
        assert last == play.answer(0)
        assert last.steps == last.iterations
        told.append((last.iteration, last.steps))
        if last.chores:
            handed_out += [(last.iteration, type(chore).__name__) for chore in play.do_chores(0, 1)]
    assert told[:-1] == [(0, 7), (7, 2), (9, 5), (14, 4), (18, 3), (21, 4)]
    assert told[-1][0] == play.coordinator.iteration == play.coordinator.progress.iteration == 25
    assert sorted(handed_out) == [
        (7, "Checkpoint"),
        (9, "Evaluate"),
        (14, "Checkpoint"),
        (18, "Evaluate"),
        (21, "Checkpoint"),
        (25, "Checkpoint"),
        (25, "Evaluate"),
    ]
    assert [event["iteration"] for event in play.events("round")] == [7, 9, 14, 18, 21, 25]


def test_a_run_goes_on_and_falls_back_to_where_it_was() -> None:
    start = RunProgress(round=1, iteration=7)
    play = Play(start=start, checkpoint=1, local_steps=10, checkpoint_iterations=9)
    play.begin(0, 1)
    welcome = play.answer(0)
    assert isinstance(welcome, Welcome)
    assert (welcome.iteration, welcome.steps) == (7, 2)
    exchanges = play.quorum(0, 1)
    play.vote(0, of=exchanges[0])
    play.vote(1, of=exchanges[1])
    assert play.coordinator.iteration == 9
    # Both die before the checkpoint of iteration 9 is there.
    play.passes(2.5)
    for slot in (0, 1):
        play.register(slot, 2)
    for slot in (0, 1):
        play.ready(slot, 2, steps=0)
    assert play.coordinator.iteration == 7
    again = play.answer(0, 2)
    assert isinstance(again, Welcome)
    assert (again.iteration, again.steps, again.checkpoint) == (7, 2, 1)
