"""Prepared directories of object stores and HDFS, where a directory does not appear in one step.

The shards of a preparation lie in a directory of its own below the prepared one, and the manifest, written last,
says which these are: with it the prepared directory exists. So nobody sees half of one, and two preparations of the
same data do not disturb each other.

    STORE/<fingerprint>/manifest.json
    STORE/<fingerprint>/<preparation>/train-....arrow, validation-....arrow, mean-0.npy
"""

import re
import time
from collections import defaultdict
from pathlib import Path

from sparknet.data.shards.manifest import MANIFEST_NAME, Manifest
from sparknet.data.storage.place import Facts, Place
from sparknet.errors import DataError

__all__ = ["is_prepared", "names_draft", "publish_remotely", "sweep", "verify_remotely"]

_ABANDONED_SECONDS = 24 * 3600
"""What was written so long ago, and is of no manifest, a killed run left: none takes so long over a file."""


def is_prepared(directory: Place) -> bool:
    """Whether there is a whole prepared directory.

    Raises:
        DataError: the store cannot be reached.
    """
    if directory.local is not None:
        return directory.local.exists()
    return (directory / MANIFEST_NAME).facts() is not None


def publish_remotely(hidden: Path, draft: Place) -> bool:
    """Upload the mean images and then the manifest; whether it counts: somebody else may have been faster.

    What the manifest does not name of the draft, of attempts that failed or were overtaken, is removed before.

    Args:
        hidden: what `assemble` has made.
        draft: where the shards are, below the prepared directory.

    Raises:
        DataError: a file cannot be written.
        OSError: one cannot be read.
    """
    directory = draft.parent
    if is_prepared(directory):
        return False
    manifest = Manifest.load(hidden)
    named = {shard.path for shard in (*manifest.train, *manifest.validation)}
    for file in draft.files():
        if f"{draft.name}/{file.name}" not in named:
            (draft / file.name).delete()
    others = [(path, draft / path.name) for path in hidden.iterdir() if path.name != MANIFEST_NAME]
    for path, place in (*others, (hidden / MANIFEST_NAME, directory / MANIFEST_NAME)):
        with path.open("rb") as file:
            place.upload(file)
    return True


def verify_remotely(directory: Place, manifest: Manifest) -> None:
    """Hold the files that are there against the manifest, by name and size: one request for a thousand of them.

    Raises:
        DataError: a shard is missing or of another size, or the store cannot be listed.
    """
    above = f"{directory.uri}/"
    sizes = {file.uri.removeprefix(above): file.bytes for file in directory.files(recursive=True)}
    for shard in (*manifest.train, *manifest.validation):
        if sizes.get(shard.path) != shard.bytes:
            found = f"has {sizes[shard.path]} bytes" if shard.path in sizes else "is missing"
            raise DataError(
                f"{above}{shard.path}: the shard {found}; the manifest says {shard.bytes} bytes: delete "
                f"{directory} to prepare the data again"
            )


_PREPARED, _DRAFT = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{32}")
_OURS = re.compile(r"(train|validation|sums|mean)-[0-9a-f-]+\.(arrow|npz|npy)")
"""Names of the directories of a store, and of the files in a draft."""


def sweep(store: Place) -> None:
    """Remove what preparations left that were killed more than a day ago.

    Raises:
        DataError: the store cannot be listed, or a file not be removed.
    """
    drafts: dict[tuple[str, str], list[Facts]] = defaultdict(list)
    manifests: set[str] = set()
    for file in store.files(recursive=True):
        parts = file.uri.removeprefix(f"{store.uri}/").split("/")
        if len(parts) == 3 and _PREPARED.fullmatch(parts[0]) and _DRAFT.fullmatch(parts[1]):
            drafts[parts[0], parts[1]].append(file)
        elif parts[1:] == [MANIFEST_NAME]:
            manifests.add(parts[0])
    limit = (time.time() - _ABANDONED_SECONDS) * 1e9
    for (prepared, draft), files in drafts.items():
        # Of a file without a time nobody knows how old it is, and others may have such directories of their own.
        if any(
            file.modified_ns is None or file.modified_ns > limit or not _OURS.fullmatch(file.name) for file in files
        ):
            continue
        if prepared not in manifests or not names_draft(store / prepared, draft):
            (store / prepared / draft).delete()


def names_draft(directory: Place, draft: str) -> bool:
    """Whether a prepared directory has a manifest, and that names files of a draft."""
    if not is_prepared(directory):
        return False
    text = (directory / MANIFEST_NAME).read()
    # By its text: a manifest of another version names its files as well.
    return draft.encode() in text
