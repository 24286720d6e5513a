"""What a file system's error means: whether the same request may succeed in a moment, and what to do if not."""

import os
import re
from pathlib import Path

from sparknet.errors import DataError

__all__ = ["Cut", "Outage", "explain", "hides_answer", "is_transient"]


class Outage(DataError):
    """A server did not answer, or was too busy, also when it was asked again: it may be back later."""


class Cut(OSError):
    """Fewer bytes arrived, or were stored, than were asked for."""


# Arrow's S3 tells by words only: "AWS Error SLOW_DOWN during GetObject operation: ...", and of a HEAD, whose answer
# has no body, by the status alone. Some servers call an upload that they finished while their answer was lost
# NO_SUCH_UPLOAD when asked again.
_TRANSIENT = re.compile(
    r"\bAWS Error (NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT"
    r"|NO_SUCH_UPLOAD)\b"
    r"|\bHTTP status (408|429|5\d\d)\b"
)
# The body of an error's answer is longer than the range that was asked for, and the SDK's stream takes no more.
_HIDDEN = "Failed to flush response stream"
_REFUSED = re.compile(r"\bAWS Error ACCESS_DENIED\b|\bHTTP status 403\b")
_CREDENTIAL_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_SET_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role on every machine"
# The first that fits is told: what is particular stands above what is general.
_REMEDIES = (
    (
        re.compile(r"NO_SUCH_BUCKET"),
        "no such bucket; correct the URI, or data.s3_endpoint if another server holds it",
    ),
    (
        re.compile(r"HTTP status 30[127]\b|AuthorizationHeaderMalformed"),
        "the bucket is in another region; set AWS_REGION to the bucket's",
    ),
    (
        re.compile(
            r"ExpiredToken|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN_ID"
        ),
        f"the credentials are not accepted; renew them: {_SET_CREDENTIALS}",
    ),
    (
        re.compile(r"REQUEST_TIME_TOO_SKEWED"),
        "this machine's clock is wrong, and signatures carry the time; set the clock",
    ),
    (
        re.compile(r"HTTP status 400\b"),
        "the request was refused without a reason: the credentials have expired or the bucket is in another "
        "region; renew them or set AWS_REGION to the bucket's",
    ),
    (
        _TRANSIENT,
        "the server cannot be reached or is overloaded; try again later, or check the network and data.s3_endpoint",
    ),
)


def is_transient(error: OSError) -> bool:
    """Whether the same request may succeed in a moment: a busy server, a broken or slow connection."""
    if isinstance(error, Cut | ConnectionError | TimeoutError):
        return True
    # With an errno it is the local system's, or Arrow's translation of one: words in its message mean nothing.
    return error.errno is None and bool(_TRANSIENT.search(str(error)))


def hides_answer(error: OSError) -> bool:
    """Whether this may be any error answer of S3's, whose text did not fit: of a small file, or the end of one."""
    return _HIDDEN in str(error)


def explain(error: Exception) -> str:
    """One line for people: what is wrong and what to do about it."""
    reason = " ".join(str(error).split())[:400]  # some servers answer with a page of HTML
    if isinstance(error, FileNotFoundError):
        return "no such file; correct the path or check that every worker reaches it"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}; check that every worker reaches it, and its rights"
    if _REFUSED.search(reason):
        return _refused()
    remedy = next(
        (text for pattern, text in _REMEDIES if pattern.search(reason)), "check that every worker reaches it"
    )
    return f"{remedy} ({reason})"


def _refused() -> str:
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if any(os.environ.get(name) for name in _CREDENTIAL_SOURCES) or any(
        Path(file).expanduser().exists() for file in files
    ):
        return (
            "access is refused; the credentials of this machine must allow s3:ListBucket, s3:GetObject and, to "
            "write, s3:PutObject and s3:DeleteObject (S3 also answers so for a missing file that may not be listed)"
        )
    return f"access is refused, and no credentials are in the environment or in a profile; {_SET_CREDENTIALS}"
