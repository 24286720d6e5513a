"""Who may write a remote run directory: one driver at a time, where no lock can be held.

Every driver writes a claim of its own, `owner-<nonce>.json`, which no other one ever overwrites: so nothing is
asked of a store but that it lists what was written. A driver lists the claims only when its own is there, and
withdraws it if it finds another that lives: of two, one at least sees the other, whatever their order. Whether a
claim lives is told by the store's clock alone, from the times of two of its own files.
"""

import json
import logging
import os
import random
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sparknet.config import decode, encode
from sparknet.data.storage.place import Facts, Place
from sparknet.errors import ConfigError, DataError, RunDirError

__all__ = ["RENEW_SECONDS", "STALE_SECONDS", "Ownership"]

RENEW_SECONDS = 10.0
"""A living driver writes its claim again this often."""
STALE_SECONDS = 45.0
"""A claim so old is a dead driver's: nothing that is dead can make it younger."""
_ATTEMPTS = 10
_LOOK_SECONDS = 1.0  # between two looks at another's claim
# Hidden parts too: HDFS replaces a file in two steps, and between them there is only the part.
_NAME = re.compile(r"\.?owner-(?P<nonce>[0-9a-f]{16})\.json(\.\w+\.part)?")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a claim's file says."""

    nonce: str
    host: str
    pid: int
    since: str
    """When the driver came, by its own clock."""
    settled: bool = False
    """It has found no other, and owns the directory."""
    replaced: tuple[str, ...] = ()
    """The nonces of dead drivers whose place it has taken."""

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


class Ownership:
    """The right to write a run directory, from `acquire` to `release`.

    It must be renewed every `RENEW_SECONDS`; `confirm` may be called on any thread.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._claim = Claim(
            nonce=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )
        self._lock = threading.Lock()
        self._confirmed = 0.0

    @classmethod
    def acquire(cls, place: Place) -> "Ownership":
        """Become the owner; a claim that may be a dead driver's is watched until it is renewed or stale.

        Raises:
            RunDirError: another driver uses the directory.
            DataError: it cannot be read or written.
        """
        for _ in range(_ATTEMPTS):
            owner = cls(place)
            rival = owner._try()
            if rival is None:
                return owner
            claim, age_seconds = rival
            if _renewed(place, claim, age_seconds):
                raise RunDirError(
                    f"{place} is in use by another run ({claim}); wait for it, end it, or choose another --run-dir"
                )
            # Two that came at once have both withdrawn: they must not come back at once.
            time.sleep(random.SystemRandom().random())
        raise RunDirError(f"{place} is wanted by several drivers at once; start one of them alone, then it goes on")

    def renew(self) -> None:
        """Say that this driver lives.

        Raises:
            RunDirError: another one has taken its place.
            DataError: the store cannot be reached.
        """
        with self._lock:
            self._look()
            self._write()

    def confirm(self) -> None:
        """Make sure of the ownership before something is written, by the store's word of the last seconds.

        Raises:
            RunDirError: another driver has taken its place.
            DataError: the store cannot be reached.
        """
        # By the wall's clock, which goes on while a machine sleeps; that it may jump costs one look.
        if abs(time.time() - self._confirmed) > 2 * RENEW_SECONDS:
            self.renew()

    def release(self) -> None:
        """Let others have the directory.

        Raises:
            DataError: the claim cannot be removed; it will be stale.
        """
        with self._lock:
            self._file(self._claim.nonce).delete()

    def _try(self) -> tuple[Claim, float] | None:
        """Become the owner, or the youngest living claim of another and its age."""
        self._write()
        try:
            claims = _list(self._place)
            own = claims.pop(self._claim.nonce, None)
            if own is None or own.modified_ns is None:
                raise RunDirError(
                    f"{self._place}: the store does not list a file that was just written, or not when it was; a "
                    "run directory needs one that does: choose another --run-dir"
                )
            now = own.modified_ns
            ages = {nonce: (now - (facts.modified_ns or now)) / 1e9 for nonce, facts in claims.items()}
            living = [nonce for nonce, age in ages.items() if age < STALE_SECONDS]
            if not living:
                self._claim = replace(self._claim, settled=True, replaced=tuple(claims))
                # First this, so that one that was only asleep finds out who has taken its place.
                self._write()
                for facts in claims.values():
                    self._place.storage.place(facts.uri).delete()
                return None
            youngest = min(living, key=lambda nonce: ages[nonce])
            rival = _read(self._place, claims[youngest])
        except BaseException:
            self.release()
            raise
        self.release()
        return rival or Claim(nonce=youngest, host="?", pid=0, since="?"), ages[youngest]

    def _look(self) -> None:
        claims = _list(self._place)
        own = claims.pop(self._claim.nonce, None)
        for nonce, facts in claims.items():
            # One that was taken for dead and was only asleep: it finds this claim as this one finds it, and ends.
            if nonce in self._claim.replaced:
                continue
            other = _read(self._place, facts)
            if other is not None and other.settled:
                raise self._lost(str(other))
        if own is None:
            raise self._lost("its claim was removed")

    def _lost(self, by: str) -> RunDirError:
        return RunDirError(
            f"{self._place} was taken over from this run ({by}), which was silent for {STALE_SECONDS:.0f} s or "
            "more: this run ends; go on with the other one"
        )

    def _write(self) -> None:
        self._file(self._claim.nonce).write(json.dumps(encode(self._claim)).encode())
        self._confirmed = time.time()

    def _file(self, nonce: str) -> Place:
        return self._place / f"owner-{nonce}.json"


def _renewed(place: Place, claim: Claim, age_seconds: float) -> bool:
    """Watch a living claim until it is renewed: then True; or gone, or as old as only a dead one is: then False."""
    first = _list(place).get(claim.nonce)
    left = STALE_SECONDS - age_seconds
    _LOG.warning(
        "%s was used %.0f s ago (%s): waiting for up to %.0f s to see whether that run lives",
        place, age_seconds, claim, left,
    )  # fmt: skip
    until = time.monotonic() + left
    while first is not None and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)  # a store tells nobody of a change: it can only be asked again
        now = _list(place).get(claim.nonce)
        if now is None:
            return False
        if now.modified_ns != first.modified_ns:
            found = _read(place, now)
            return found is not None and found.settled
    return False


def _list(place: Place) -> dict[str, Facts]:
    """The claims by nonce."""
    named = ((_NAME.fullmatch(facts.name), facts) for facts in place.files("*owner-*"))
    return {match["nonce"]: facts for match, facts in named if match}


def _read(place: Place, facts: Facts) -> Claim | None:
    """What a claim says; None: it is gone."""
    file = place.storage.place(facts.uri)
    try:
        text = file.read()
    except DataError:
        # Its driver may withdraw it at any moment, also between two requests of one reading.
        if file.facts() is None:
            return None
        raise
    try:
        return decode(Claim, json.loads(text))
    except (ValueError, ConfigError) as error:
        raise RunDirError(
            f"{facts.uri} is no claim of a driver ({error}); delete it, if no run uses {place}"
        ) from error
