"""The coordinator, scene by scene: the start, rounds, pace, the end, the clock.

Who takes part and does the chores: test_coordinator_members.py. Any order of events: the property tests.
"""

import pytest

from plays import Play, live_slots, report_on
from sparknet.data.loading.sampling_order import Cursor
from sparknet.training.coordination.coordinator import MAX_ABORTS
from sparknet.training.coordination.messages import (
    Aborted,
    Checkpoint,
    Committed,
    Done,
    Evaluate,
    Exchange,
    Heartbeat,
    Ready,
    Stop,
    Vote,
    Welcome,
)
from sparknet.training.coordination.rules import RunProgress

START = Cursor(epoch=0, position=0)

# The start --------------------------------------------------------------------------------------------------


def test_the_run_starts_when_all_workers_are_there():
    play = Play(slots=3)
    assert play.register(0) is None
    assert play.register(2) is None
    assert play.coordinator.status == "starting"
    welcome = play.register(1)
    assert welcome == Welcome(round=0, heal=False, steps=4, iteration=0, iterations=4, cursor=START)
    assert play.answer(0) == play.answer(2) == welcome
    assert [event["slot"] for event in play.events("worker_joined")] == [0, 1, 2]


def test_after_the_deadline_it_starts_with_those_that_came():
    play = Play(slots=3, min_workers=2, start_seconds=60.0)
    play.register(0)
    play.register(2)
    play.passes(59.75, alive=[0, 2])
    assert play.answer(0) is None
    play.passes(0.25, alive=[0, 2])
    assert isinstance(play.answer(0), Welcome)
    assert isinstance(play.answer(2), Welcome)
    assert live_slots(play) == [0, 2]


def test_too_few_workers_fail_the_run_with_the_remedy():
    play = Play(slots=3, min_workers=2, start_seconds=60.0)
    play.register(0)
    play.passes(60.0, alive=[0])
    assert play.coordinator.status == "failed"
    reason = play.coordinator.reason
    assert reason.startswith("1 of 3 workers registered in 60 s and at least 2 must")
    assert "run.min_workers" in reason
    assert "cluster.start_seconds" in reason
    assert play.answer(0) == Stop(reason=reason)


def test_one_that_died_before_the_start_does_not_count():
    play = Play(slots=2, min_workers=2, start_seconds=60.0)
    play.register(0)
    play.passes(3.0)
    play.register(1)
    assert play.answer(1) is None
    assert play.register(0, 2) == play.answer(1)
    assert isinstance(play.answer(1), Welcome)


def test_a_slot_that_does_not_exist_fails_the_run():
    play = Play(slots=2)
    play.register(2)
    assert "slot 2; slots are 0 to 1" in play.coordinator.reason


def test_a_resumed_run_begins_at_its_checkpoint():
    cursors = {0: Cursor(epoch=1, position=7), 1: Cursor(epoch=1, position=9)}
    play = Play(start=RunProgress(round=6, iteration=24, samples=480, cursors=cursors), checkpoint=6)
    play.begin(0, 1)
    assert play.answer(1) == Welcome(
        round=6, heal=False, steps=4, iteration=24, iterations=4, cursor=cursors[1], checkpoint=6
    )
    play.commit(0, 1)
    assert play.coordinator.round == 7
    assert play.coordinator.samples == 480 + 80


# Rounds -----------------------------------------------------------------------------------------------------


def test_a_round_commits_when_everybody_voted():
    play = Play()
    play.begin(0, 1)
    assert play.ready(0, steps=3) is None
    second = play.ready(1, steps=1)
    first = play.exchange(0)
    expected = {"round": 0, "epoch": 0, "size": 2, "heal": False, "healing": False}
    assert first == Exchange(rank=0, weight=0.75, **expected)
    assert second == Exchange(rank=1, weight=0.25, **expected)
    assert play.vote(0, of=first) is None
    assert play.vote(1, of=second) == Committed(round=1, steps=4, iteration=4, iterations=4, chores=False)
    assert play.answer(0) == Committed(round=1, steps=4, iteration=4, iterations=4, chores=False)
    assert play.coordinator.cursors == {0: Cursor(epoch=0, position=30), 1: Cursor(epoch=0, position=1010)}
    (record,) = play.events("round")
    assert record["round"] == 1
    assert record["steps"] == 4
    assert record["samples"] == 40
    assert record["slots"] == [0, 1]


def test_the_membership_epoch_stays_while_the_members_stay():
    play = Play()
    play.begin(0, 1)
    for _ in range(3):
        assert {exchange.epoch for exchange in play.quorum(0, 1)} == {0}
        for slot in (0, 1):
            play.vote(slot, of=play.exchange(slot))
    assert len(play.events("quorum")) == 1


def test_the_round_record_says_how_the_time_was_spent():
    play = Play()
    play.begin(0, 1)
    play.ready(0, seconds=1.0)
    play.passes(2.0, alive=[0, 1])
    play.ready(1, seconds=3.0)
    for slot in (0, 1):
        play.vote(slot, of=play.exchange(slot))
    (record,) = play.events("round")
    assert record["step_seconds"] == 2.0
    assert record["wait_seconds"] == 1.0
    assert record["exchange_seconds"] == 0.1
    assert record["sync_share"] == pytest.approx(1.1 / 3.1)
    assert record["images_per_second"] == pytest.approx(80 / 2.0)
    assert record["weight"] == 0.5, "that of the lowest slot"


def test_a_refused_vote_aborts_the_round_and_the_steps_are_kept():
    play = Play()
    play.begin(0, 1)
    first, second = play.quorum(0, 1)
    assert play.vote(0, of=first) is None
    answer = play.vote(1, of=second, ok=False, reason="no answer from a peer")
    assert answer == Aborted(epoch=0, reason="worker 1: no answer from a peer")
    assert play.answer(0) == answer
    assert play.coordinator.round == 0
    play.commit(0, 1)
    assert play.coordinator.round == 1
    assert play.events("round")[0]["samples"] == 80


def test_after_an_abort_the_group_is_never_the_old_one():
    play = Play()
    play.begin(0, 1)
    exchanges = play.quorum(0, 1)
    for slot, exchange in enumerate(exchanges):
        play.vote(slot, of=exchange, ok=slot == 0)
    assert [exchange.epoch for exchange in play.quorum(0, 1)] == [1, 1]
    assert play.pulse(0).aborted_epoch == 0


def test_a_death_during_the_exchange_aborts_it_and_the_others_go_on():
    play = Play(slots=3)
    play.begin(0, 1, 2)
    exchanges = play.quorum(0, 1, 2)
    play.passes(2.5, alive=[0, 1])
    assert live_slots(play) == [0, 1]
    assert play.pulse(0).aborted_epoch == exchanges[0].epoch
    for slot in (0, 1):
        answer = play.vote(slot, of=exchanges[slot], ok=False, reason="a peer died")
        assert isinstance(answer, Aborted)
    play.commit(0, 1)
    assert play.events("round")[0]["slots"] == [0, 1]
    assert "silent for" in play.events("worker_lost")[0]["reason"]
    assert "worker 2 died" in play.events("round_aborted")[0]["reason"]


def test_a_death_after_all_others_had_the_average_does_not_abort_it():
    """The sum needed the dead one's share, so it is in it: the round counts."""
    play = Play(slots=3)
    play.begin(0, 1, 2)
    exchanges = play.quorum(0, 1, 2)
    play.vote(0, of=exchanges[0])
    play.vote(1, of=exchanges[1])
    play.passes(2.5, alive=[0, 1])
    assert play.coordinator.round == 1
    assert isinstance(play.answer(0), Committed)
    assert play.events("round")[0]["samples"] == 120
    assert 2 in play.coordinator.cursors


def test_a_late_vote_of_one_that_was_taken_for_dead_is_told_of_the_commit():
    play = Play(slots=2)
    play.begin(0, 1)
    exchanges = play.quorum(0, 1)
    play.vote(0, of=exchanges[0])
    play.passes(2.5, alive=[0])
    assert play.coordinator.round == 1
    assert play.vote(1, of=exchanges[1]) == Committed(round=1, steps=4, iteration=4, iterations=4, chores=False)
    assert play.events("worker_returned")[0]["slot"] == 1
    assert all(not exchange.heal for exchange in play.quorum(0, 1))


def test_one_that_fell_silent_after_its_vote_hears_of_the_commit_when_it_wakes():
    play = Play(slots=3)
    play.begin(0, 1, 2)
    exchanges = play.quorum(0, 1, 2)
    play.vote(0, of=exchanges[0])
    play.passes(2.5, alive=[1, 2])
    for slot in (1, 2):
        play.vote(slot, of=exchanges[slot])
    assert play.coordinator.round == 1
    play.passes(0.25, alive=[0, 1, 2])
    assert play.answer(0) == Committed(round=1, steps=4, iteration=4, iterations=4, chores=False)
    assert all(not exchange.heal for exchange in play.quorum(0, 1, 2))


def test_one_that_fell_silent_after_its_vote_hears_of_the_abort_when_it_wakes():
    play = Play()
    play.begin(0, 1)
    exchanges = play.quorum(0, 1)
    play.vote(0, of=exchanges[0])
    play.passes(2.5)
    play.passes(0.25, alive=[0, 1])
    assert isinstance(play.answer(0), Aborted)
    assert isinstance(play.vote(1, of=exchanges[1]), Aborted)
    play.commit(0, 1)


def test_a_late_vote_is_told_the_round_that_its_weights_are_of():
    """The others have gone on meanwhile: it has to be healed, and must not take itself for current."""
    play = Play(eval_every=2, evaluation_parts=1)
    play.begin(0, 1)
    exchanges = play.quorum(0, 1)
    play.vote(0, of=exchanges[0])
    play.passes(2.5, alive=[0])
    play.commit(0)
    assert play.coordinator.round == 2
    assert play.vote(1, of=exchanges[1]) == Committed(round=1, steps=4, iteration=8, iterations=4, chores=False)
    play.do_chores(0)
    play.ready(1)
    play.ready(0)
    assert play.exchange(1).heal
    assert not play.exchange(0).heal


def test_a_vote_of_an_older_epoch_that_comes_late_does_not_count():
    play = Play()
    play.begin(0, 1)
    older = play.quorum(0, 1)
    for slot in (0, 1):
        play.vote(slot, of=older[slot], ok=False)
    newer = play.quorum(0, 1)
    play.vote(0, of=older[0])
    play.vote(1, of=newer[1])
    assert play.coordinator.round == 0


def test_a_late_vote_is_aborted_when_the_round_was():
    play = Play(slots=2)
    play.begin(0, 1)
    exchanges = play.quorum(0, 1)
    play.passes(2.5, alive=[0])
    play.vote(0, of=exchanges[0], ok=False)
    assert isinstance(play.vote(1, of=exchanges[1]), Aborted)
    assert play.coordinator.round == 0


def test_repeating_a_request_is_harmless():
    play = Play()
    play.begin(0, 1)
    ready = Ready(slot=0, attempt=1, round=0, steps=4, samples=40, cursor=START, serial=100)
    for _ in range(3):
        play.coordinator.receive(ready, play.now)
    play.ready(1)
    exchange = play.exchange(0)
    vote = Vote(slot=0, attempt=1, round=0, epoch=0, ok=True, serial=101)
    for _ in range(3):
        play.coordinator.receive(vote, play.now)
    play.vote(1, of=play.exchange(1))
    committed = play.answer(0)
    play.coordinator.receive(vote, play.now)
    assert play.answer(0) == committed == Committed(round=1, steps=4, iteration=4, iterations=4, chores=False)
    assert exchange.epoch == 0
    assert play.coordinator.round == 1


def test_too_many_aborts_fail_the_run_and_name_the_hosts():
    play = Play()
    play.begin(0, 1)
    for _ in range(MAX_ABORTS):
        assert play.coordinator.status == "running"
        exchanges = play.quorum(0, 1)
        for slot, exchange in enumerate(exchanges):
            play.vote(slot, of=exchange, ok=False, reason="connection refused")
    assert play.coordinator.status == "failed"
    reason = play.coordinator.reason
    assert f"round 0 was tried {MAX_ABORTS} times" in reason
    assert "0 on host0, 1 on host1" in reason
    assert "connection refused" in reason
    assert "sparknet doctor" in reason
    assert play.answer(0) == Stop(reason=reason)


def test_a_death_in_between_starts_the_count_of_aborts_anew():
    play = Play(slots=3)
    play.begin(0, 1, 2)
    for _ in range(MAX_ABORTS - 1):
        for slot, exchange in enumerate(play.quorum(0, 1, 2)):
            play.vote(slot, of=exchange, ok=False)
    play.passes(2.5, alive=[0, 1])
    for _ in range(MAX_ABORTS - 1):
        for slot, exchange in enumerate(play.quorum(0, 1)):
            play.vote(slot, of=exchange, ok=False)
    assert play.coordinator.status == "running"


# Pace -------------------------------------------------------------------------------------------------------


def test_balanced_pace_gives_each_as_many_steps_as_fit_the_medians_time():
    play = Play(slots=3, local_steps=12, balanced=True)
    play.begin(0, 1, 2)
    for slot, seconds in enumerate((6.0, 12.0, 36.0)):
        play.ready(slot, steps=12, seconds=seconds)
    for slot in range(3):
        play.vote(slot, of=play.exchange(slot))
    assert [play.answer(slot).steps for slot in range(3)] == [24, 12, 4]


def test_balanced_pace_stays_within_1_and_8_times():
    play = Play(slots=3, local_steps=4, balanced=True)
    play.begin(0, 1, 2)
    for slot, seconds in enumerate((0.001, 4.0, 4000.0)):
        play.ready(slot, steps=4, seconds=seconds)
    for slot in range(3):
        play.vote(slot, of=play.exchange(slot))
    assert [play.answer(slot).steps for slot in range(3)] == [32, 4, 1]


def test_fixed_pace_gives_everybody_the_same():
    play = Play(slots=2, local_steps=12)
    play.begin(0, 1)
    play.ready(0, seconds=1.0)
    play.ready(1, seconds=30.0)
    for slot in (0, 1):
        play.vote(slot, of=play.exchange(slot))
    assert [play.answer(slot).steps for slot in (0, 1)] == [12, 12]


# The end ----------------------------------------------------------------------------------------------------


def finished_play() -> Play:
    play = Play(rounds=1, evaluation_parts=1)
    play.begin(0, 1)
    play.commit(0, 1)
    play.do_chores(0, 1)
    assert play.coordinator.status == "finished"
    return play


def test_the_last_round_is_evaluated_and_saved_before_the_end():
    play = Play(rounds=1, evaluation_parts=2)
    play.begin(0, 1)
    play.commit(0, 1)
    assert play.coordinator.status == "running"
    kinds = {type(chore) for chore in play.do_chores(0, 1)}
    assert kinds == {Evaluate, Checkpoint}
    assert play.answer(0) == play.answer(1) == Done()
    assert play.pulse(0).end


def test_without_rows_to_measure_the_last_round_is_only_saved():
    play = Play(rounds=1, evaluation_parts=0)
    play.begin(0, 1)
    play.commit(0, 1)
    assert {type(chore) for chore in play.do_chores(0, 1)} == {Checkpoint}
    assert play.coordinator.status == "finished"
    assert play.coordinator.evaluation is None
    assert play.coordinator.loss == play.events("round")[-1]["loss"]


def test_rows_that_are_looked_at_again_are_not_more_rows():
    play = Play(rounds=1, evaluation_parts=1, validation_rows=5)
    play.begin(0, 1)
    play.commit(0, 1)
    play.do_chores(0, 1)
    (event,) = play.events("evaluation")
    assert (event["rows"], event["looked_at"]) == (5, 50)


def test_a_finished_run_never_starts_again():
    play = finished_play()
    assert play.register(0, 9) == Done()
    assert play.ready(0, 9, steps=0) == Done()
    play.passes(100.0)
    play.coordinator.stop("interrupted")
    play.coordinator.fail("broken")
    play.fails(0, fatal=True)
    assert play.coordinator.status == "finished"
    assert play.coordinator.round == 1


def test_killed_at_the_very_end_the_last_round_is_not_trained_again():
    """Both die after the last commit, before its chores are done: only the checkpoint's rounds are left."""
    play = Play(rounds=2, checkpoint_every=1, evaluation_parts=1)
    play.begin(0, 1)
    play.commit(0, 1)
    play.do_chores(0, 1)
    play.commit(0, 1)
    assert play.chore(0) == Checkpoint(round=2)
    play.chore(0, report=report_on(Checkpoint(round=2)))
    play.passes(2.5)
    play.register(0, 2)
    welcome = play.ready(0, 2, steps=0)
    assert welcome == Welcome(
        round=2,
        heal=False,
        steps=4,
        iteration=8,
        iterations=4,
        cursor=Cursor(epoch=0, position=40),
        checkpoint=2,
        chores=True,
    )
    chores = [play.chore(0, 2)]
    while play.coordinator.status == "running":
        chores.append(play.chore(0, 2, report=report_on(chores[-1])))
    assert play.coordinator.status == "finished"
    assert len(play.events("round")) == 2


def test_resumed_behind_its_last_chores_a_run_trains_no_further():
    play = Play(rounds=3, evaluation_parts=0, start=RunProgress(round=3, iteration=12, samples=99), checkpoint=3)
    play.register(0)
    play.register(1)
    assert play.coordinator.status == "finished"
    assert play.answer(0) == play.answer(1) == Done()
    assert (play.coordinator.iteration, play.coordinator.samples) == (12, 99)


def test_stop_reaches_everybody():
    play = Play()
    play.begin(0, 1)
    play.ready(0)
    play.coordinator.stop("interrupted")
    assert play.answer(0) == play.answer(1) == Stop(reason="interrupted")
    assert play.pulse(1).end
    assert play.register(1, 5) == Stop(reason="interrupted")


def test_a_fatal_error_fails_the_run_and_names_worker_host_phase_and_cause():
    play = Play()
    play.begin(0, 1)
    play.fails(1, fatal=True, cause="the loss is nan")
    assert play.coordinator.reason == "worker 1 on host1 failed while taking steps: the loss is nan"
    assert play.coordinator.culprit.slot == 1
    assert isinstance(play.answer(0), Stop)


def test_an_error_that_a_retry_may_help_only_costs_the_worker():
    play = Play()
    play.begin(0, 1)
    play.fails(1, fatal=False, cause="no route")
    assert play.coordinator.status == "running"
    assert play.events("worker_lost")[0]["reason"] == "error while taking steps: no route"
    play.ready(0)
    assert play.exchange(0).size == 1


@pytest.mark.parametrize("waits_below", [True, False])
def test_a_run_with_too_few_workers_waits_or_ends(waits_below):
    play = Play(slots=3, min_workers=2, start_seconds=60.0, waits_below=waits_below)
    play.begin(0, 1, 2)
    play.commit(0, 1, 2)
    play.fails(1, fatal=False)
    play.fails(2, fatal=False)
    play.ready(0)
    if not waits_below:
        assert play.coordinator.reason.startswith("1 of 3 workers are left, and run.min_workers is 2: give")
        return
    notes = [event["message"] for event in play.events("note")]
    assert notes == ["1 of 3 workers are left, and run.min_workers is 2: waiting for others for 60 s"]
    play.passes(30, alive=[0])
    assert (play.coordinator.status, play.answer(0)) == ("running", None)
    play.register(1, 2)
    play.ready(1, 2, steps=0)
    assert play.exchange(0).size == 2
    play.fails(1, 2, fatal=False)
    play.passes(61, alive=[0])
    assert "1 of 3 workers are left, and run.min_workers is 2 after 6" in play.coordinator.reason


def test_rounds_are_counted_by_the_workers_that_took_part():
    play = Play(slots=2)
    play.begin(0, 1)
    play.commit(0, 1)
    play.fails(1, fatal=False)
    play.commit(0)
    assert play.coordinator.rounds_by_workers == {2: 1, 1: 1}
    assert play.coordinator.progress.rounds_by_workers == {2: 1, 1: 1}


def test_a_run_goes_on_behind_its_last_round_until_its_samples_are_made():
    play = Play(slots=2, rounds=2, samples=400)
    play.begin(0, 1)
    for done in range(1, 6):
        assert play.coordinator.samples < 400
        play.commit(0, 1)
        assert play.coordinator.round == done
    assert play.coordinator.samples == 400
    assert play.answer(0).chores, "the last checkpoint, and no round behind it"


def test_a_fault_in_the_users_code_is_told_in_full_and_ends_the_run_at_the_second_time():
    play = Play()
    play.begin(0, 1)
    play.fails(1, fatal=False, cause="ValueError: at step 25 (net.py, line 3)", place="net.py, line 3")
    (lost,) = play.events("worker_lost")
    assert lost["trace"] == "Traceback of net.py, line 3"
    play.fails(0, fatal=False, cause="ValueError: at step 26 (net.py, line 3)", place="net.py, line 3")
    assert play.coordinator.status == "failed"
    assert play.coordinator.reason.endswith("while taking steps: ValueError: at step 26 (net.py, line 3)")


def test_an_error_of_an_older_attempt_changes_nothing():
    play = Play()
    play.begin(0, 1)
    play.register(1, 2)
    play.fails(1, 1, fatal=True)
    assert play.coordinator.status == "running"
    assert live_slots(play) == [0, 1]


def test_replicas_that_differ_fail_the_run_and_are_named():
    play = Play()
    play.begin(0, 1)
    play.commit(0, 1)
    play.ready(0, anchor_hash="aaaa")
    play.ready(1, anchor_hash="bbbb")
    reason = play.coordinator.reason
    assert play.coordinator.status == "failed"
    assert "worker 1 on host1 holds weights bbbb" in reason
    assert "worker 0 holds aaaa" in reason
    assert "take that machine out" in reason


def test_replicas_of_strategy_none_may_differ():
    play = Play(replicas_agree=False)
    play.begin(0, 1)
    play.ready(0, anchor_hash="aaaa")
    play.ready(1, anchor_hash="bbbb")
    assert play.coordinator.status == "running"
    assert play.exchange(0).size == 2


# The clock --------------------------------------------------------------------------------------------------


def test_silence_longer_than_the_timeout_is_death():
    play = Play()
    play.begin(0, 1)
    play.passes(2.0, alive=[0])
    assert live_slots(play) == [0, 1]
    play.passes(0.25, alive=[0])
    assert live_slots(play) == [0]
    assert play.coordinator.drain_lost() == [(1, 1)]
    assert play.coordinator.failures == 1


def test_a_suspended_driver_does_not_take_its_workers_for_dead():
    play = Play()
    play.begin(0, 1)
    play.passes(1.0, alive=[0, 1])
    play.now += 3600.0
    play.coordinator.tick(play.now)
    assert live_slots(play) == [0, 1]
    for slot in (0, 1):
        play.coordinator.receive(Heartbeat(slot=slot, attempt=1), play.now)
    play.passes(1.0, alive=[0, 1])
    assert live_slots(play) == [0, 1]
    assert play.coordinator.failures == 0


def test_after_a_suspension_the_dead_are_still_noticed():
    play = Play()
    play.begin(0, 1)
    play.passes(1.0, alive=[0, 1])
    play.now += 3600.0
    play.coordinator.tick(play.now)
    play.passes(2.5, alive=[0])
    assert live_slots(play) == [0]


def test_one_that_returns_is_alive_again():
    play = Play()
    play.begin(0, 1)
    play.passes(2.5, alive=[0])
    play.passes(0.25, alive=[0, 1])
    assert live_slots(play) == [0, 1]
    assert play.events("worker_returned")[0]["slot"] == 1
    play.commit(0, 1)
