"""Which validation is the best, when a run ends for want of a better one, and which weights are kept."""

import pytest

from plays import Play, report_on
from sparknet.errors import ConfigError
from sparknet.training.coordination.best_round import Aim, BestRound, Judge
from sparknet.training.coordination.messages import Checkpoint, ChoreReport, Done, Evaluate
from sparknet.training.coordination.post_commit import Evaluation
from sparknet.training.coordination.rules import RunProgress

NAN = float("nan")


def judged(aim: Aim, *figures: float, measure: str = "accuracy", best: BestRound | None = None) -> Judge:
    """A judge that has seen a validation in each of rounds 1, 2, …."""
    judge = Judge(aim, best)
    for number, value in enumerate(figures, start=1):
        judge.take(Evaluation(round=number, rows=10, outputs={measure: value, "other": 0.0}, seconds=1.0))
    return judge


@pytest.mark.parametrize(
    ("figures", "round", "since"),
    [
        ([0.5, 0.7, 0.6], 2, 1),
        ([0.5, 0.5, 0.5], 1, 2),  # as good is no better: the earlier one stays
        ([NAN, 0.1, NAN], 2, 1),
        ([0.1, NAN, 0.2], 3, 0),
        ([NAN, NAN], 1, 1),
    ],
)
def test_the_best_of_what_is_better_the_higher_it_is(figures: list[float], round: int, since: int) -> None:
    best = judged(Aim(), *figures).best
    assert best is not None
    assert (best.round, best.since, best.measure) == (round, since, "accuracy")


def test_the_best_of_what_is_better_the_lower_it_is() -> None:
    best = judged(Aim(measure="mae"), 3.0, 1.0, 2.0, measure="mae").best
    assert best is not None
    assert (best.round, best.value) == (2, 1.0)


def test_one_of_several_classes_is_judged_like_the_measure_of_all() -> None:
    aim = Aim(measure="f1.2", higher=("f1",))
    best = judged(aim, 0.1, 0.9, 0.2, measure="f1.2").best
    assert best is not None
    assert best.round == 2


@pytest.mark.parametrize(
    ("outputs", "measure"),
    [({"accuracy": 0.5, "loss": 1.0}, "accuracy"), ({"loss": 1.0, "mae": 2.0}, "loss")],
)
def test_without_a_name_it_is_accuracy_else_the_loss(outputs: dict[str, float], measure: str) -> None:
    evaluation = Evaluation(round=1, rows=1, outputs=outputs, seconds=0.0)
    assert Aim().figure(evaluation) == (measure, outputs[measure])


def test_what_is_not_measured_is_named_with_what_is() -> None:
    with pytest.raises(
        ConfigError, match=r"run\.early_stop\.measure is 'f1', and the run measures accuracy, other"
    ):
        judged(Aim(measure="f1"), 0.5)


def test_a_gain_must_exceed_min_delta() -> None:
    judge = judged(Aim(min_delta=0.125, patience=2), 0.5, 0.625, 0.625)
    assert judge.best is not None
    assert judge.best.round == 1
    assert judge.ended
    best = judged(Aim(min_delta=0.125, patience=2), 0.5, 0.75, 0.75).best
    assert best is not None
    assert best.round == 2


def test_small_gains_add_up() -> None:
    """Each is held against the best, not against the one before."""
    best = judged(Aim(min_delta=0.1), 0.5, 0.55, 0.59, 0.65).best
    assert best is not None
    assert best.round == 4


def test_patience_counts_validations_in_a_row() -> None:
    aim = Aim(patience=2)
    assert not judged(aim, 0.5, 0.4).ended
    assert judged(aim, 0.5, 0.4, 0.3).ended
    assert not judged(aim, 0.5, 0.4, 0.6, 0.5).ended
    assert not judged(Aim(), *[0.5] * 50).ended


def test_initial_weights_and_repetitions_do_not_count() -> None:
    judge = Judge(Aim(patience=1), None)
    first = Evaluation(round=0, rows=1, outputs={"accuracy": 1.0}, seconds=0.0)
    assert judge.take(first) == {}
    assert judge.best is None
    for _ in range(3):
        judge.take(Evaluation(round=4, rows=1, outputs={"accuracy": 0.5}, seconds=0.0))
    assert judge.best == BestRound(round=4, measure="accuracy", value=0.5, since=0, judged=4)
    assert not judge.ended


# In a run -----------------------------------------------------------------------------------------------------


def played(play: Play, *accuracies: float) -> None:
    """A round of both workers for each accuracy, and its chores."""
    for accuracy in accuracies:
        play.commit(0, 1)
        round_done(play, accuracy)


def round_done(play: Play, accuracy: float) -> list[object]:
    """All chores of the round; what was handed out."""
    done: list[object] = []
    for slot in (0, 1):
        play.chore(slot)
    while busy := [slot for slot in (0, 1) if play.is_chore(slot)]:
        chore = play.answer(busy[0])
        done.append(chore)
        report = report_on(chore, rows=100)
        if isinstance(chore, Evaluate):
            report = ChoreReport(part=chore.part, rows=100, sums={"accuracy": (100 * accuracy,)})
        play.chore(busy[0], report=report)
    return done


def begun(aim: Aim, **more) -> Play:
    play = Play(eval_every=1, evaluation_parts=1, aim=aim, **more)
    play.begin(0, 1)
    return play


def test_a_run_without_progress_ends_and_saves_its_last_round() -> None:
    play = begun(Aim(patience=2))
    played(play, 0.5, 0.75, 0.625)
    assert play.coordinator.status == "running"
    play.commit(0, 1)
    # The evaluation first: it decides whether there is a checkpoint at all.
    assert [type(chore) for chore in round_done(play, 0.75)] == [Evaluate, Checkpoint]
    assert play.coordinator.status == "finished"
    assert play.coordinator.judge.ended
    assert play.answer(0) == play.answer(1) == Done()
    (told,) = play.events("early_stop")
    assert told == {"event": "early_stop", "round": 4, "measure": "accuracy", "best_round": 2, "best": 0.75}
    assert [event["best"] for event in play.events("evaluation")] == [True, True, False, False]


def test_a_run_that_reaches_its_last_round_did_not_end_early() -> None:
    play = begun(Aim(patience=2), rounds=3)
    played(play, 0.5, 0.5, 0.5)
    assert play.coordinator.status == "finished"
    assert not play.events("early_stop")


def test_the_best_round_is_saved_when_it_is_found() -> None:
    play = begun(Aim(keep_best=True))
    play.commit(0, 1)
    assert [type(chore) for chore in round_done(play, 0.5)] == [Evaluate, Checkpoint]
    play.commit(0, 1)
    assert [type(chore) for chore in round_done(play, 0.25)] == [Evaluate]
    play.commit(0, 1)
    assert [type(chore) for chore in round_done(play, 0.75)] == [Evaluate, Checkpoint]
    best = play.coordinator.progress.best
    assert best is not None
    assert best.round == 3


def test_without_keeping_the_best_nothing_more_is_saved() -> None:
    play = begun(Aim(patience=9))
    play.commit(0, 1)
    assert [type(chore) for chore in round_done(play, 0.5)] == [Evaluate]


def test_a_checkpoint_that_is_due_anyway_is_saved_once_and_records_the_judgement() -> None:
    play = begun(Aim(keep_best=True), checkpoint_every=1)
    play.commit(0, 1)
    assert [type(chore) for chore in round_done(play, 0.5)] == [Evaluate, Checkpoint]
    best = play.coordinator.progress.best
    assert best is not None
    assert best.judged == 1


def test_a_resumed_run_goes_on_waiting_where_it_was() -> None:
    best = BestRound(round=2, measure="accuracy", value=0.75, since=1, judged=3)
    start = RunProgress(round=3, samples=120, best=best)
    play = begun(Aim(patience=2), start=start, checkpoint=3)
    played(play, 0.5)
    assert play.coordinator.status == "finished"
    assert play.coordinator.judge.ended


def test_a_run_that_had_ended_early_is_not_trained_on() -> None:
    """Killed between its last checkpoint and its end; it is evaluated once more, for the result."""
    best = BestRound(round=2, measure="accuracy", value=0.75, since=2, judged=4)
    play = begun(Aim(patience=2), start=RunProgress(round=4, samples=160, best=best), checkpoint=4)
    assert [type(chore) for chore in round_done(play, 0.5)] == [Evaluate]
    assert play.coordinator.status == "finished"
    assert play.coordinator.round == 4
    assert play.coordinator.judge.best == best


def test_after_a_fall_back_the_lost_rounds_are_not_the_best() -> None:
    play = begun(Aim(keep_best=False, patience=3), checkpoint_every=1)
    played(play, 0.5)
    play.commit(0, 1)
    for slot in (0, 1):
        play.chore(slot)
    busy = next(slot for slot in (0, 1) if isinstance(play.answer(slot), Evaluate))
    play.chore(busy, report=ChoreReport(part=0, rows=100, sums={"accuracy": (90.0,)}))
    assert play.coordinator.judge.best is not None
    assert play.coordinator.judge.best.round == 2
    # Both die before the checkpoint of round 2 is whole.
    play.passes(2.5)
    play.register(0, 2)
    play.register(1, 2)
    for slot in (0, 1):
        play.ready(slot, 2, steps=0)
    assert play.events("rollback")
    assert play.coordinator.round == 1
    assert play.coordinator.judge.best is not None
    assert play.coordinator.judge.best.round == 1
