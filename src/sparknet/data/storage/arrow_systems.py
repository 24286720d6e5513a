"""Arrow's file systems for URIs: made when first needed, once for each process and each setting."""

import os
import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as arrow_fs

from sparknet.errors import DataError

__all__ = ["S3_SCHEMES", "check_endpoint", "check_uri", "file_system", "replaces_whole", "scheme_of"]

S3_SCHEMES = frozenset({"s3", "s3a", "s3n"})
"""The last two are Hadoop's names for it, which Spark users write."""
_OBJECT_STORES = S3_SCHEMES | {"gs", "gcs", "abfs", "abfss"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONNECT_SECONDS = 10.0  # the SDK's own one second is too short for a busy server
_REQUEST_SECONDS = 20.0  # without a byte
_UPLOAD_ATTEMPTS = 3
_ACCOUNT = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; "file" for a path."""
    # Not urlsplit: it takes `C:x`, `a:b` and the like for schemes, and cuts keys at `?` and `#`.
    match = _SCHEME.match(uri)
    return match[1].lower() if match else "file"


def check_uri(uri: str) -> None:
    """Refuse a remote URI with credentials in it or without a bucket or host; the message repeats no secret.

    Raises:
        DataError: the URI is one of these.
    """
    scheme = scheme_of(uri)
    authority = uri.split("://", 1)[1].split("/", 1)[0]
    user, _, host = authority.rpartition("@")
    # A secret may hold a slash: then what stands before it looks like a host with a strange port.
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    if ":" in user or not port.isdigit() or (scheme in S3_SCHEMES and "@" in authority):
        raise DataError(
            f"a {scheme}:// URI with a user or password in it: credentials never stand in a URI, where logs and "
            "process lists show them; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance "
            "role"
        )
    if scheme in S3_SCHEMES and not _BUCKET.fullmatch(authority):
        raise DataError(
            f"a {scheme}:// URI whose bucket is no bucket's name: write {scheme}://BUCKET/KEY, the bucket of "
            "letters, digits, '.', '-' and '_'"
        )


def check_endpoint(url: str) -> tuple[str, str]:
    """Scheme and host of an S3 server's URL.

    Raises:
        DataError: it is no such URL, or has credentials in it, which the message does not repeat.
    """
    try:
        parts = urlsplit(url)
        scheme = parts.scheme if parts.port != 0 else ""
    except ValueError:
        parts, scheme = urlsplit(""), ""
    if "@" in url:
        raise DataError("the S3 endpoint's URL has a user or password in it: leave them out of data.s3_endpoint")
    if scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise DataError(f"S3 endpoint {url!r}; it must be http://HOST[:PORT] or https://...: set data.s3_endpoint")
    return scheme, parts.netloc


def replaces_whole(uri: str) -> bool:
    """Whether a file appears under its name only when it is complete, as in object stores."""
    return scheme_of(uri) in _OBJECT_STORES


def file_system(uri: str, *, s3_endpoint: str, writing: bool = False) -> tuple[Any, str]:
    """The file system of a remote URI, and the URI's path in it.

    Args:
        uri: of any scheme but file.
        s3_endpoint: as `Storage` has it.
        writing: whether it is to upload.

    Raises:
        DataError: the scheme is not known, its library is missing, or the endpoint is no URL.
    """
    scheme = scheme_of(uri)
    authority, _, key = uri.split("://", 1)[1].partition("/")
    # The process is part of the key: parent and child would otherwise talk over the same sockets after a fork, and
    # Spark's Python workers are forks of one daemon.
    if scheme in S3_SCHEMES:
        endpoint = s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        account = tuple(os.environ.get(name, "") for name in _ACCOUNT)
        region = _region(authority, endpoint, os.getpid())
        system = _s3(endpoint, region, account, _UPLOAD_ATTEMPTS if writing else 1, os.getpid())
        return system, f"{authority}/{key}".rstrip("/")
    system, root = _other(f"{scheme}://{authority}/", os.getpid())
    return system, f"{root.rstrip('/')}/{key}".rstrip("/") or "/"


@cache
def _s3(endpoint: str, region: str, account: tuple[str, ...], attempts: int, process: int) -> Any:
    """Credentials come from the standard chain only: environment, profile, instance role."""
    del account, process  # they only tell one file system from another
    scheme, host = check_endpoint(endpoint) if endpoint else ("https", None)
    return arrow_fs.S3FileSystem(
        region=region or None,
        scheme=scheme,
        endpoint_override=host,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        # A stream that writes in the foreground and fails in its second part makes an object of the first part
        # when it is closed; one that writes in the background remembers the failure.
        background_writes=True,
        # Reads are repeated by us, one range at a time; a part of an upload only the SDK can repeat.
        retry_strategy=arrow_fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


@cache
def _region(bucket: str, endpoint: str, process: int) -> str:
    del process
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if given or endpoint:
        return given or "us-east-1"  # what S3-compatible servers expect
    try:
        return arrow_fs.resolve_s3_region(bucket)
    except OSError:
        return ""  # the SDK's own default; the request that follows tells what is wrong


@cache
def _other(root: str, process: int) -> tuple[Any, str]:
    del process
    scheme = scheme_of(root)
    try:
        return arrow_fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{root}: scheme {scheme} is not known to Arrow; use a path, file:, s3://, hdfs:// or gs://"
        ) from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        remedy = "set JAVA_HOME, HADOOP_HOME and CLASSPATH" if scheme in ("hdfs", "viewfs") else "check the network"
        raise DataError(f"{root}: the {scheme} file system cannot be opened: {reason}; {remedy}") from error
