"""GPUs handed out by a Redis server: for many applications on many hosts.

Each host is a hash, each of its GPUs a field `fence|expires|since|holder`, times in microseconds of the server's
clock. One script takes, renews and frees, so that no two clients are ever between each other's steps. A lease
expires unless it is renewed, and its owner counts it as lost some time before the server does: whatever delays its
renewal, it stops before another begins.

A server that was restarted may have forgotten leases, or remember older ones. So for one lease's time after it
began (`run_id` of INFO tells) it hands out nothing, in which living owners renew what is theirs. Fences go by the
server's clock, so that they rise across restarts too.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from sparknet.errors import ClusterError, ConfigError, MissingDependency
from sparknet.spark.devices.lease import Held

__all__ = ["RedisLease", "RedisLeases", "shown_url"]

_SAFE_SHARE = 0.75
"""Of a lease's time its owner uses: the rest is for a step that has begun, and for clocks that differ in pace."""
_LOOK_SECONDS = 0.25
_CALL_SECONDS = 5.0

_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local action, lease, holder = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local function read(gpu)
  local value = redis.call('HGET', KEYS[1], gpu)
  if not value then return 0, 0, 0, '' end
  local fence, expires, since, name = string.match(value, '^(%d+)|(%d+)|(%d+)|(.*)$')
  return tonumber(fence), tonumber(expires), tonumber(since), name
end
local function write(gpu, fence, expires, since, name)
  redis.call('HSET', KEYS[1], gpu, string.format('%d|%d|%d|%s', fence, expires, since, name))
end
local seen, born = string.match(redis.call('GET', KEYS[2]) or '', '^(%w+)|(%d+)$')
if seen ~= run then
  born = now
  redis.call('SET', KEYS[2], string.format('%s|%d', run, now))
end
if action == 'acquire' then
  local young = tonumber(born) + lease - now
  if young > 0 then return {'young', young} end
  for at = 4, #ARGV do
    local fence, expires = read(ARGV[at])
    if expires <= now then
      fence = math.max(fence + 1, now)
      write(ARGV[at], fence, now + lease, now, holder)
      return {'got', ARGV[at], string.format('%d', fence)}
    end
  end
  return {'taken'}
end
local gpu, own = ARGV[4], tonumber(ARGV[5])
local fence, expires, since, name = read(gpu)
if action == 'renew' then
  if fence > own then return {'lost'} end
  write(gpu, own, now + lease, since > 0 and since or now, holder)
  return {'got', gpu, ARGV[5]}
end
if action == 'release' and fence == own then write(gpu, fence, 0, 0, '') end
if action == 'free' then write(gpu, math.max(fence + 1, now), 0, 0, '') end
return {'done'}
"""


class RedisLeases:
    """Leases of a Redis server.

    Args:
        url: `redis://HOST:6379`, or a bare host with or without a port, as the original had it.
        lease_seconds: after which a lease that was not renewed is free.
        prefix: begins all keys.

    Raises:
        MissingDependency: the package redis is not installed.
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, *, lease_seconds: float, prefix: str = "sparknet:gpus") -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "cluster.leases is 'redis', which needs the package redis: pip install 'sparknet[redis]'"
            ) from error
        self._shown = shown_url(url)
        self._lease_seconds = lease_seconds
        self._prefix = prefix
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            self._client: Any = redis.Redis.from_url(
                url if "://" in url else f"redis://{url}",
                decode_responses=True,
                socket_timeout=min(_CALL_SECONDS, lease_seconds),
                socket_connect_timeout=_CALL_SECONDS,
            )
        except ValueError as error:
            raise ConfigError(
                f"cluster.redis is {self._shown!r}: {error}; give redis://HOST:6379, or rediss:// for TLS"
            ) from None
        self._script = self._client.register_script(_SCRIPT)

    def ping(self) -> None:
        """Ask the server whether it is there.

        Raises:
            ClusterError: it is not.
        """
        self._ask(self._client.ping)

    def acquire(self, host: str, gpus: Sequence[str], *, holder: str, wait_seconds: float) -> "RedisLease":
        """As the Protocol says; a server that began just now is waited for besides."""
        until = time.monotonic() + wait_seconds
        token = secrets.token_hex(4)
        while True:
            # Before the question: the server's own time of expiry lies behind it, whatever the answer takes.
            asked = time.monotonic()
            said, *rest = self._call("acquire", host, f"{holder} {token}", *gpus)
            if said == "got":
                return RedisLease(
                    self, host, gpu=rest[0], fence=int(rest[1]), holder=f"{holder} {token}", asked=asked
                )
            if said == "young":
                # Not counted as waiting for others: it ends by itself.
                time.sleep(min(_LOOK_SECONDS, int(rest[0]) / 1e6))
                until = max(until, time.monotonic() + _LOOK_SECONDS)
                continue
            if time.monotonic() >= until:
                holders = "; ".join(str(one) for one in self.held(host) if one.gpu in gpus)
                raise ClusterError(
                    f"all GPUs of {host} are taken: {holders}; end one of them, use fewer workers, or free what is "
                    "left of a dead one: sparknet gpus release"
                )
            time.sleep(_LOOK_SECONDS)

    def held(self, host: str) -> list[Held]:
        """As the Protocol says."""
        seconds, micro = self._ask(self._client.time)
        now = seconds * 1_000_000 + micro
        found: list[Held] = []
        for gpu, value in sorted(self._ask(lambda: self._client.hgetall(self._key(host))).items()):
            _, expires, since, holder = value.split("|", 3)
            alive = int(expires) > now
            age = (now - int(since)) / 1e6 if alive else 0.0
            # Without the word that tells owners of one name apart.
            shown = holder.rpartition(" ")[0] if alive else ""
            found.append(Held(host=host, gpu=gpu, holder=shown, seconds=age, alive=alive))
        return found

    def hosts(self) -> list[str]:
        """Names of the hosts of which GPUs were ever handed out."""
        start = f"{self._prefix}:host:"
        keys: list[str] = self._ask(lambda: list(self._client.scan_iter(f"{start}*")))
        return sorted(key.removeprefix(start) for key in keys)

    def free(self, host: str, gpu: str) -> None:
        """As the Protocol says; its owner finds that it has lost it when it next renews."""
        self._call("free", host, "", gpu, "0")

    def renew(self, host: str, gpu: str, fence: int, holder: str) -> bool:
        """Prolong a lease; False: it is another's."""
        return self._call("renew", host, holder, gpu, str(fence))[0] == "got"

    def give_back(self, host: str, gpu: str, fence: int) -> None:
        """End a lease, if it is still its owner's."""
        self._call("release", host, "", gpu, str(fence))

    @property
    def lease_seconds(self) -> float:
        """After which a lease that was not renewed is free."""
        return self._lease_seconds

    def _call(self, action: str, host: str, holder: str, *rest: str) -> list[str]:
        keys = [self._key(host), f"{self._prefix}:server"]
        arguments = [action, str(int(self._lease_seconds * 1e6)), holder, *rest]
        return cast("list[str]", self._ask(lambda: self._script(keys=keys, args=arguments)))

    def _key(self, host: str) -> str:
        return f"{self._prefix}:host:{host}"

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._failures as error:
            # Its own words may hold the URL, and with it the password.
            raise ClusterError(
                f"Redis at {self._shown} cannot be asked for GPUs: {type(error).__name__}; see that it runs and is "
                "reached from here, or set cluster.leases"
            ) from None


class RedisLease:
    """A lease that a thread renews, at a third of its time.

    Attributes:
        gpu: as the hash has it.
        fence: rises with every owner.
    """

    def __init__(self, leases: RedisLeases, host: str, *, gpu: str, fence: int, holder: str, asked: float) -> None:
        self.gpu = gpu
        self.fence = fence
        self._leases, self._host, self._holder = leases, host, holder
        self._safe_until = asked + _SAFE_SHARE * leases.lease_seconds
        self._lost = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="gpu-lease", daemon=True)
        self._thread.start()

    @property
    def valid(self) -> bool:
        """Whether it was renewed in time, by this process's own clock, which goes on while it is stopped."""
        if time.monotonic() >= self._safe_until:
            # For ever: another may have had it meanwhile, and freed it again.
            self._lost = True
        return not self._lost

    def release(self) -> None:
        """Stop renewing, and give it back if it is still ours."""
        self._closing.set()
        self._thread.join()
        if self.valid:
            self._lost = True
            # A server that is not there forgets it by itself.
            with contextlib.suppress(ClusterError):
                self._leases.give_back(self._host, self.gpu, self.fence)

    def _renew(self) -> None:
        while not self._closing.wait(self._leases.lease_seconds / 3):
            # A lease that was lost is not renewed: it may be another's by the next moment.
            if not self.valid:
                return
            asked = time.monotonic()
            try:
                renewed = self._leases.renew(self._host, self.gpu, self.fence, self._holder)
            except ClusterError:
                # The server may be back before it is too late.
                continue
            if not renewed or not self.valid:
                self._lost = True
                return
            self._safe_until = asked + _SAFE_SHARE * self._leases.lease_seconds


def shown_url(url: str) -> str:
    """A URL without its password, for people."""
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()
