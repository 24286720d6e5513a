"""Files through the driver: whole, by those with the token, from the store alone."""

import hashlib
import json
from contextlib import closing

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from sparknet.data.storage import retry
from sparknet.errors import ClusterError, DataError, Unauthorized
from sparknet.spark.jobs.driver_files import DriverFiles
from sparknet.spark.jobs.file_service import PIECES, FileService
from sparknet.spark.jobs.ports import CHUNK_BYTES, DriverAddress, DriverHost

PREPARED, DRAFT = "0123456789abcdef", f".preparing-0123456789abcdef-{'0' * 32}"
CONTENT = bytes(range(256)) * (CHUNK_BYTES // 100)  # of three pieces
NAME = "train-00000.arrow"


@pytest.fixture
def store(tmp_path):
    for name in (PREPARED, DRAFT):
        (tmp_path / "store" / name).mkdir(parents=True)
    (tmp_path / "store" / PREPARED / NAME).write_bytes(CONTENT)
    (tmp_path / "secret.arrow").write_text("not yours")
    return tmp_path / "store"


@pytest.fixture
def address(store):
    with FileService(store, at=DriverHost(host="127.0.0.1"), token="t") as service:
        yield DriverAddress(uri=service.address, token="t")


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.arrow"
    path.write_bytes(CONTENT)
    return path


def test_a_file_comes_in_pieces(address):
    pieces = [bytes(piece) for piece in DriverFiles(address=address, directory=PREPARED).pieces(NAME)]
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) == CHUNK_BYTES
    assert len(pieces) == 3


def test_a_file_is_handed_over_whole(address, store, own):
    DriverFiles(address=address, directory=DRAFT).deliver(own, "train-00000-ab-0000.arrow")
    assert [path.name for path in (store / DRAFT).iterdir()] == ["train-00000-ab-0000.arrow"]
    assert (store / DRAFT / "train-00000-ab-0000.arrow").read_bytes() == CONTENT
    assert own.exists()


def test_a_stream_that_breaks_goes_on_where_it_broke(address, store, monkeypatch):
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    asked = []

    class Breaking(DriverAddress):
        def connect(self):
            client = DriverAddress.connect(self)
            return BreakingClient(client, asked)

    found = DriverFiles(address=Breaking(uri=address.uri, token="t"), directory=PREPARED).pieces(NAME)
    assert b"".join(found) == CONTENT
    # The last one finds nothing more.
    assert asked == [0, CHUNK_BYTES, 2 * CHUNK_BYTES, len(CONTENT)]


class BreakingClient:
    """Gives one piece of each stream, and then an error of the network."""

    def __init__(self, client, asked):
        self._client, self._asked = client, asked

    def do_get(self, ticket, options):
        self._asked.append(json.loads(ticket.ticket)["start"])
        for chunk in self._client.do_get(ticket, options):
            yield chunk
            raise flight.FlightUnavailableError("the cable is out")

    def close(self):
        self._client.close()


def test_a_driver_that_is_gone(store, own, monkeypatch):
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", 1.0)
    with FileService(store, at=DriverHost(host="127.0.0.1"), token="t") as service:
        address = DriverAddress(uri=service.address, token="t")
    with pytest.raises(
        ClusterError, match=r"failed while fetching train-00000\.arrow: .*set cluster\.driver_host, or"
    ):
        list(DriverFiles(address=address, directory=PREPARED).pieces(NAME))
    with pytest.raises(ClusterError, match="failed while handing over"):
        DriverFiles(address=address, directory=DRAFT).deliver(own, "train-00000-ab-0000.arrow")


def test_a_driver_that_is_away_for_a_while(store, monkeypatch):
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    with FileService(store, at=DriverHost(host="127.0.0.1"), token="t") as first:
        address = DriverAddress(uri=first.address, token="t")
    pieces = DriverFiles(address=address, directory=PREPARED).pieces(NAME)
    # More often than any single request is repeated; each says that it has nothing, so that who waits may give up.
    assert [bytes(next(pieces)) for _ in range(20)] == [b""] * 20
    pieces.close()


def test_a_wrong_token_is_refused(address, own):
    stranger = DriverAddress(uri=address.uri, token="guess")
    with pytest.raises(Unauthorized, match="refused the token while fetching"):
        list(DriverFiles(address=stranger, directory=PREPARED).pieces(NAME))
    with pytest.raises(Unauthorized, match="refused the token while handing over"):
        DriverFiles(address=stranger, directory=DRAFT).deliver(own, "train-00000-ab-0000.arrow")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "manifest.json", f"../{PREPARED}/{NAME}", ""])
def test_nothing_but_shards_is_given(address, name):
    with pytest.raises(DataError, match="is no file that this service gives or takes"):
        list(DriverFiles(address=address, directory=PREPARED).pieces(name))


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        (PREPARED, NAME),
        (DRAFT, "../x.arrow"),
        (DRAFT, "manifest.json"),
        ("..", "train-0.arrow"),
        (DRAFT, ".x.arrow"),
    ],
)
def test_nothing_is_taken_but_into_a_preparation(address, store, own, directory, name):
    before = sorted(store.parent.rglob("*"))
    with pytest.raises(DataError, match="is no file that this service gives or takes"):
        DriverFiles(address=address, directory=directory).deliver(own, name)
    assert sorted(store.parent.rglob("*")) == before


def test_a_preparation_that_is_over_takes_nothing(address, store, own):
    (store / DRAFT).rmdir()
    with pytest.raises(
        DataError, match=r"store cannot be written: No such file or directory; free space or set data"
    ):
        DriverFiles(address=address, directory=DRAFT).deliver(own, "train-00000-ab-0000.arrow")


def test_a_file_that_is_missing(address):
    with pytest.raises(
        DataError, match=r"train-00009\.arrow: cannot be read: No such file .*prepare the data again"
    ):
        list(DriverFiles(address=address, directory=PREPARED).pieces("train-00009.arrow"))


@pytest.mark.parametrize("damage", ["half", "other"])
def test_a_stream_that_ends_early_or_is_spoilt_leaves_nothing(address, store, damage):
    told = {
        "file": f"{DRAFT}/train-00000-ab-0000.arrow",
        "bytes": 8,
        "sha256": hashlib.sha256(b"12345678").hexdigest(),
    }
    client = address.connect()
    descriptor = flight.FlightDescriptor.for_command(json.dumps(told).encode())
    writer, _ = client.do_put(descriptor, PIECES, address.options(30))
    data = b"1234" if damage == "half" else b"1234567x"
    with pytest.raises(flight.FlightServerError, match="arrived, which has 8"):
        send(writer, data)
    client.close()
    assert list((store / DRAFT).iterdir()) == []


def send(writer, data):
    with writer:
        writer.write_batch(pa.record_batch([pa.array([data], pa.binary())], schema=PIECES))
        writer.done_writing()


def test_an_address_that_nobody_has(store):
    with pytest.raises(ClusterError, match=r"cannot listen on 203\.0\.113\.1: .*set cluster\.driver_host"):
        FileService(store, at=DriverHost(host="203.0.113.1"), token="t")


def test_a_start_before_the_file(address):
    asked = json.dumps({"file": f"{PREPARED}/{NAME}", "start": -3}).encode()
    with closing(address.connect()) as client, pytest.raises(flight.FlightServerError, match="from byte -3"):
        client.do_get(flight.Ticket(asked), address.options(60)).read_all()


def test_more_than_was_told_is_refused_while_it_arrives(address, store):
    told = {"file": f"{DRAFT}/train-00000-ab-0000.arrow", "bytes": 10, "sha256": "0" * 64}
    piece = pa.record_batch([pa.array([bytes(1 << 20)], pa.binary())], schema=PIECES)

    def send_without_end():
        descriptor = flight.FlightDescriptor.for_command(json.dumps(told).encode())
        with closing(address.connect()) as client:
            writer, _ = client.do_put(descriptor, PIECES, address.options(60))
            with writer:
                while True:
                    writer.write_batch(piece)

    with pytest.raises(pa.ArrowException, match=r"more than 10 bytes of train-00000-ab-0000\.arrow arrived"):
        send_without_end()
    assert list((store / DRAFT).iterdir()) == []
