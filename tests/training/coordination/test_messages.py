"""Messages: each one goes and comes back as it was, and nothing else is taken for one."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import ClusterError
from sparknet.training.coordination import messages
from sparknet.training.coordination.messages import Answer, Ready, Request, Stop, dump_message, load_message

KINDS = [*Request.__args__, *Answer.__args__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_was(kind):
    @given(st.from_type(kind))
    def round_trip(message):
        body = dump_message(message)
        assert load_message(body) == message
        assert json.loads(body)["kind"] == kind.__name__

    round_trip()


def strategy_of(kind):
    finite = st.floats(allow_nan=False)
    hints = {float: finite, int: st.integers(-(2**63), 2**63 - 1)}
    fields = kind.__dataclass_fields__.values()
    return st.builds(kind, **{field.name: hints[field.type] for field in fields if field.type in hints})


for _kind in [*KINDS, messages.ChoreReport, Cursor]:
    st.register_type_strategy(_kind, strategy_of(_kind))


def test_every_message_is_known():
    names = {kind.__name__ for kind in KINDS}
    assert names | {"ChoreReport"} == set(messages.__all__) - {
        "Answer",
        "Question",
        "Request",
        "dump_message",
        "load_message",
    }


@given(st.binary(max_size=200))
@example(b"")
@example(b"null")
@example(b"[]")
@example(b'"Stop"')
@example(b"{}")
@example(b'{"kind": null}')
@example(b'{"kind": ["Stop"]}')
@example(b'{"kind": "Stop"}')
@example(b'{"kind": "Stop", "reason": 1}')
@example(b'{"kind": "Stop", "reason": "x", "more": 1}')
@example(b'{"kind": "__class__"}')
@example(b'{"kind": "Heartbeat", "slot": true, "attempt": 1}')
@example(b'{"kind": "Heartbeat", "slot": 1.5, "attempt": 1}')
@example(b"[" * 100_000)
@example(b'{"kind": "Heartbeat", "slot": ' + b"9" * 5000 + b', "attempt": 1}')
@example(b"\xff\xfe\x00")
@example(b'{"kind": "Ready", "cursor": []}')
def test_hostile_bytes_are_a_cluster_error(body):
    with pytest.raises(ClusterError, match="must run the same version"):
        load_message(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    kind=st.sampled_from([kind.__name__ for kind in KINDS]),
    fields=st.dictionaries(
        st.sampled_from(["slot", "attempt", "round", "epoch", "ok", "cursor", "report", "reason", "steps", "part"]),
        json_values,
    ),
)
def test_the_right_kind_with_wrong_fields_is_a_message_or_a_cluster_error(kind, fields):
    try:
        message = load_message(json.dumps({"kind": kind, **fields}).encode())
    except ClusterError:
        return
    assert load_message(dump_message(message)) == message


def test_defaults_may_be_left_out():
    body = (
        b'{"kind":"Ready","slot":1,"attempt":2,"round":3,"steps":4,"samples":5,"cursor":{"epoch":6,"position":7}}'
    )
    cursor = Cursor(epoch=6, position=7)
    assert load_message(body) == Ready(slot=1, attempt=2, round=3, steps=4, samples=5, cursor=cursor)


def test_texts_of_any_kind_come_through():
    stop = Stop(reason='τ = 1; "quoted"\n\ttabs, \x00 and 🎉')
    assert load_message(dump_message(stop)) == stop
