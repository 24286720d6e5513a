"""The coordinator, scene by scene: who takes part, who is healed, who does the chores."""

import pytest

from plays import Play, live_slots, report_on
from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.coordination.messages import (
    Checkpoint,
    Committed,
    Evaluate,
    Heartbeat,
    Proceed,
    Superseded,
    Welcome,
)
from sparknet.training.coordination.rules import RunProgress

START = Cursor(epoch=0, position=0)

# Joining, falling behind, healing ---------------------------------------------------------------------------


def test_a_late_joiner_is_healed_from_one_that_holds_the_weights():
    play = Play()
    play.begin(0, 1)
    play.commit(0, 1)
    play.passes(2.5, alive=[1])
    welcome = play.register(0, 7)
    assert isinstance(welcome, Welcome)
    assert welcome.heal
    assert welcome.round == 1
    assert welcome.cursor == Cursor(epoch=0, position=40)
    play.ready(0, 7, steps=0)
    play.ready(1)
    joiner, donor = play.exchange(0, 7), play.exchange(1)
    assert (donor.rank, donor.heal, donor.healing, donor.weight) == (0, False, True, 1.0)
    assert (joiner.rank, joiner.heal, joiner.healing, joiner.weight) == (1, True, True, 0.0)
    assert joiner.epoch == donor.epoch > 0
    play.vote(1, of=donor)
    play.vote(0, 7, of=joiner)
    assert play.answer(0, 7) == Committed(round=2, steps=4, iteration=8, iterations=4, chores=False)
    assert all(not exchange.heal for exchange in play.quorum((0, 7), 1))
    assert play.events("quorum")[1]["healed"] == [0]


def test_one_that_could_not_be_healed_is_healed_in_the_next_try():
    play = Play()
    play.begin(0, 1)
    play.commit(0, 1)
    play.register(0, 2)
    play.ready(0, 2, steps=0)
    play.ready(1)
    play.vote(0, 2, of=play.exchange(0, 2), ok=False)
    play.vote(1, of=play.exchange(1), ok=False)
    play.ready(0, 2, steps=0)
    play.ready(1)
    assert play.exchange(0, 2).heal
    assert play.exchange(1).rank == 0


def test_a_newer_attempt_takes_the_slot():
    play = Play()
    play.begin(0, 1)
    assert play.ready(0) is None
    assert isinstance(play.register(0, 2), Welcome)
    assert play.answer(0, 1) == Superseded()
    assert play.pulse(0, 1).end
    assert not play.pulse(0, 2).end
    assert play.events("worker_lost")[0]["reason"] == "replaced by attempt 2"
    play.ready(1)
    play.ready(0, 2, steps=0)
    assert play.exchange(1).size == 2
    before = play.answer(1)
    play.vote(0, 1, of=play.exchange(0, 2))
    assert play.answer(1) == before, "a vote of the older attempt counted"
    play.vote(1, of=play.exchange(1))
    assert play.coordinator.round == 0


def test_an_older_attempt_cannot_come_back():
    play = Play()
    play.begin(0, 1)
    play.register(0, 2)
    assert play.register(0, 1) == Superseded()
    assert isinstance(play.answer(0, 2), Welcome)


def test_a_straggler_is_left_behind_after_the_grace_period_and_keeps_its_steps():
    play = Play(slots=3, grace_seconds=10.0)
    play.begin(0, 1, 2)
    play.ready(0)
    play.ready(1)
    play.passes(9.75, alive=[0, 1, 2])
    assert play.answer(0) is None
    play.passes(0.25, alive=[0, 1, 2])
    assert play.exchange(0).size == 2
    for slot in (0, 1):
        play.vote(slot, of=play.exchange(slot))
    assert play.coordinator.round == 1
    play.ready(0)
    play.ready(1)
    play.ready(2, steps=4)
    straggler = play.exchange(2)
    assert straggler.heal
    assert straggler.weight == pytest.approx(1 / 3)
    assert straggler.rank == 2
    assert straggler.round == 1
    for slot in (0, 1, 2):
        play.vote(slot, of=play.exchange(slot))
    assert [event["samples"] for event in play.events("round")] == [80, 120]
    assert play.coordinator.failures == 0


def test_the_grace_period_counts_from_the_median_worker():
    play = Play(slots=3, grace_seconds=10.0)
    play.begin(0, 1, 2)
    play.ready(0)
    play.passes(20.0, alive=[0, 1, 2])
    assert play.answer(0) is None, "one of three is no majority: nobody is left behind"
    play.ready(1)
    play.passes(9.75, alive=[0, 1, 2])
    assert play.answer(0) is None
    play.passes(0.25, alive=[0, 1, 2])
    assert play.exchange(0).size == 2


def test_a_death_ends_the_wait_for_it_at_once():
    play = Play(grace_seconds=100.0)
    play.begin(0, 1)
    play.ready(0)
    play.passes(1.75, alive=[0])
    assert play.answer(0) is None
    play.passes(0.5, alive=[0])
    exchange = play.exchange(0)
    assert (exchange.size, exchange.weight) == (1, 1.0)


def test_when_all_are_dead_the_run_falls_back_to_its_checkpoint():
    play = Play(checkpoint_every=2, rounds=10)
    play.begin(0, 1)
    play.commit(0, 1)
    play.commit(0, 1)
    assert [type(chore) for chore in play.do_chores(0, 1)] == [Checkpoint]
    cursors = dict(play.coordinator.cursors)
    play.commit(0, 1, steps=9)
    assert (play.coordinator.round, play.coordinator.samples) == (3, 340)
    play.passes(2.5)
    assert live_slots(play) == []
    assert play.register(0, 2).heal
    play.ready(0, 2, steps=0)
    welcome = play.answer(0, 2)
    assert welcome == Welcome(
        round=2, heal=False, steps=4, iteration=8, iterations=4, cursor=cursors[0], checkpoint=2
    )
    assert (play.coordinator.round, play.coordinator.samples) == (2, 160)
    assert play.events("rollback") == [
        {"event": "rollback", "from_round": 3, "to_round": 2, "reason": play.events("rollback")[0]["reason"]}
    ]
    play.register(1, 2)
    play.ready(0, 2)
    play.ready(1, 2, steps=0)
    assert play.exchange(1, 2).heal
    assert not play.exchange(0, 2).heal


def test_without_a_checkpoint_the_run_falls_back_to_the_beginning():
    play = Play()
    play.begin(0, 1)
    play.commit(0, 1)
    play.passes(2.5)
    play.register(1, 2)
    assert play.ready(1, 2, steps=0) == Welcome(
        round=0, heal=False, steps=4, iteration=0, iterations=4, cursor=START
    )


def test_one_that_returns_after_the_fall_back_does_not_pass_for_current():
    play = Play()
    play.begin(0, 1)
    play.passes(2.5, alive=[1])
    play.commit(1)
    play.passes(2.5, alive=[0])
    play.ready(0)
    assert isinstance(play.answer(0), Welcome)
    assert play.coordinator.round == 0
    play.commit(0)
    play.ready(1)
    play.ready(0)
    assert play.exchange(1).heal, "round 1 of another generation is another state"
    assert not play.exchange(0).heal


# Chores -----------------------------------------------------------------------------------------------------


def test_every_part_is_evaluated_once_and_the_sums_are_right():
    play = Play(eval_every=1, evaluation_parts=5)
    play.begin(0, 1)
    play.commit(0, 1)
    assert play.answer(0).chores
    handed_out = play.do_chores(0, 1, rows=50)
    assert sorted(chore.part for chore in handed_out) == [0, 1, 2, 3, 4]
    (evaluation,) = play.events("evaluation")
    assert evaluation["rows"] == 250
    assert evaluation["accuracy"] == 0.9
    assert evaluation["top5"] == 1.0
    assert evaluation["loss"] == 0.5
    assert evaluation["round"] == 1
    assert play.answer(0) == play.answer(1) == Proceed()


def test_the_initial_weights_are_evaluated_when_that_is_asked_for():
    play = Play(evaluate_first=True, checkpoint_every=1, evaluation_parts=3)
    play.begin(0, 1)
    assert play.answer(0).chores
    assert play.answer(1).chores
    handed_out = play.do_chores(0, 1, rows=50)
    assert sorted(chore.part for chore in handed_out) == [0, 1, 2], "no checkpoint: there is nothing to keep yet"
    (evaluation,) = play.events("evaluation")
    assert (evaluation["round"], evaluation["rows"]) == (0, 150)
    assert play.answer(0) == play.answer(1) == Proceed()
    play.commit(0, 1)
    assert len(play.events("evaluation")) == 1


def test_a_run_that_begins_later_does_not_evaluate_first():
    play = Play(evaluate_first=True, evaluation_parts=3, start=RunProgress(round=2, iteration=8), checkpoint=2)
    play.begin(0, 1)
    assert not play.answer(0).chores


def test_the_next_quorum_waits_for_the_chores():
    play = Play(slots=3, eval_every=1, evaluation_parts=2, grace_seconds=5.0)
    play.begin(0, 1, 2)
    play.commit(0, 1, 2)
    first, second = play.chore(0), play.chore(1)
    assert isinstance(first, Evaluate)
    assert isinstance(second, Evaluate)
    assert play.chore(2) is None
    play.chore(1, report=report_on(second))
    assert play.answer(1) is None
    play.passes(30.0, alive=[0, 1, 2])
    assert play.answer(1) is None
    play.chore(0, report=report_on(first))
    assert play.answer(0) == play.answer(1) == play.answer(2) == Proceed()


def test_no_quorum_forms_while_a_straggler_has_chores_open():
    play = Play(slots=3, eval_every=1, evaluation_parts=1, grace_seconds=5.0)
    play.begin(0, 1, 2)
    play.ready(0)
    play.ready(1)
    play.passes(5.0, alive=[0, 1, 2])
    for slot in (0, 1):
        play.vote(slot, of=play.exchange(slot))
    chore = play.chore(0)
    play.ready(2)
    play.passes(20.0, alive=[0, 1, 2])
    assert play.answer(2) is None
    play.chore(0, report=report_on(chore))
    play.chore(1)
    assert play.answer(1) == Proceed()
    assert play.answer(2) is None


def test_a_death_gives_the_chore_to_another():
    play = Play(eval_every=1, checkpoint_every=1, evaluation_parts=1)
    play.begin(0, 1)
    play.commit(0, 1)
    assert play.chore(0) == Checkpoint(round=1)
    part = play.chore(1)
    assert part == Evaluate(round=1, part=0, parts=1)
    play.chore(1, report=report_on(part))
    assert play.answer(1) is None
    play.passes(2.5, alive=[1])
    assert play.answer(1) == Checkpoint(round=1)
    play.chore(1, report=report_on(Checkpoint(round=1)))
    assert play.answer(1) == Proceed()
    assert len(play.events("evaluation")) == 1


def test_a_part_reported_twice_counts_once():
    play = Play(eval_every=1, evaluation_parts=2)
    play.begin(0, 1)
    play.commit(0, 1)
    first = play.chore(0)
    play.chore(1)
    play.passes(2.5, alive=[1])
    play.chore(1, report=report_on(play.answer(1)))
    assert play.answer(1) == first, "the dead one's part is handed out again"
    play.chore(0, report=report_on(first))
    assert len(play.events("evaluation")) == 1
    play.chore(1, report=report_on(first))
    (evaluation,) = play.events("evaluation")
    assert evaluation["rows"] == 100
    assert play.answer(1) == Proceed()


def test_one_worker_puts_the_checkpoints_as_long_as_it_lives():
    play = Play(slots=3, checkpoint_every=1)
    play.begin(0, 1, 2)
    for _ in range(3):
        play.commit(0, 1, 2)
        assert play.chore(2) is None
        assert play.chore(1) is None
        assert isinstance(play.chore(0), Checkpoint)
        play.chore(0, report=report_on(Checkpoint(round=0)))
        assert play.answer(2) == Proceed()


def test_a_joiner_does_not_take_part_in_chores():
    play = Play(eval_every=1, evaluation_parts=2)
    play.begin(0, 1)
    play.commit(0, 1)
    play.register(1, 2)
    assert not play.answer(1, 2).chores
    assert play.chore(1, 2) == Proceed()
    parts = [play.chore(0).part]
    parts.append(play.chore(0, report=report_on(play.answer(0))).part)
    assert parts == [0, 1]


def test_after_a_fall_back_no_membership_epoch_comes_again():
    """The same worker alone, before and after: a vote from before must not be taken for one of now."""
    play = Play()
    play.begin(0, 1)
    play.passes(2.5, alive=[0])
    play.ready(0)
    before = play.exchange(0)
    play.vote(0, of=before)
    assert play.coordinator.round == 1
    play.passes(2.5, alive=[1])
    assert isinstance(play.ready(1), Welcome)
    play.passes(2.5, alive=[0])
    assert isinstance(play.ready(0), Welcome)
    play.ready(0)
    assert len(play.events("rollback")) == 2
    assert play.exchange(0).round == before.round
    assert play.exchange(0).epoch > before.epoch


# Hangs ------------------------------------------------------------------------------------------------------


def test_a_worker_that_beats_but_hangs_in_a_chore_is_given_up():
    play = Play(eval_every=1, evaluation_parts=2, hang_seconds=30.0)
    play.begin(0, 1)
    play.commit(0, 1)
    hung, other = play.chore(0), play.chore(1)
    assert isinstance(hung, Evaluate)
    assert isinstance(other, Evaluate)
    play.chore(1, report=report_on(other))
    play.passes(29, alive=[0, 1])
    assert live_slots(play) == [0, 1]
    play.passes(2, alive=[0, 1])
    assert live_slots(play) == [1], "who waits for others does not hang"
    assert "no progress for 30 s" in str(play.events("worker_lost")[0]["reason"])
    assert (0, 1) in play.coordinator.drain_lost(), "its task must be killed"
    assert play.answer(1) == hung, "its part goes to another"
    play.passes(5, alive=[0, 1])
    assert live_slots(play) == [1], "its heartbeat does not bring it back"
    assert play.pulse(0).end
    assert isinstance(play.answer(0), Superseded)
    assert isinstance(play.register(0, attempt=2), Welcome)


def test_a_slow_worker_that_gets_on_does_not_hang():
    play = Play(hang_seconds=30.0)
    play.begin(0, 1)
    for tick in range(400):
        play.now += 0.25
        for slot in (0, 1):
            beat = Heartbeat(slot=slot, attempt=1, progress=tick // 100)  # a step takes 25 s
            play.coordinator.receive(beat, play.now)
        play.coordinator.tick(play.now)
    assert live_slots(play) == [0, 1]
    play.passes(31, alive=[0, 1])
    assert live_slots(play) == [], "without a step they do"
