"""When errors of workers end a run."""

from sparknet.training.coordination.messages import Failed
from sparknet.training.coordination.worker_errors import WorkerErrors


def failed(slot, cause="it broke", *, place="", fatal=False):
    return Failed(slot=slot, attempt=1, host="h", phase="taking steps", cause=cause, fatal=fatal, place=place)


def test_the_same_error_of_a_slot_ends_the_run_at_the_third_time_in_a_row():
    errors = WorkerErrors()
    assert [errors.add(failed(0)) for _ in range(3)] == [False, False, True]
    errors = WorkerErrors()
    assert not any(errors.add(failed(slot, cause)) for cause in "ab" for slot in (0, 1, 0))


def test_a_commit_of_its_own_begins_the_count_again():
    errors = WorkerErrors()
    for _ in range(5):
        assert not errors.add(failed(0))
        assert not errors.add(failed(0))
        errors.recovered(1)
        assert errors.last is not None
        errors.recovered(0)
        assert errors.last is None


def test_a_line_of_the_users_code_may_fail_once_in_a_run():
    errors = WorkerErrors()
    assert not errors.add(failed(0, "at step 25", place="net.py, line 3"))
    assert not errors.add(failed(1, "at step 31", place="net.py, line 4"))
    errors.recovered(0)
    assert errors.add(failed(1, "at step 26", place="net.py, line 3"))


def test_what_no_attempt_can_help_ends_it_at_once():
    assert WorkerErrors().add(failed(0, fatal=True))
