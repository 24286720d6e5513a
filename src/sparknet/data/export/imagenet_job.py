"""ImageNet's archives become shuffled tar chunks: what is to be done, what is already there, and how it ends.

Which image goes into which chunk is a pure function of the label file's entries and the seed. Each finished chunk
has a report beside it; a run that was cut off at any moment is gone on with by asking for the same again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sparknet.data.export.imagenet_pieces import cut_pieces
from sparknet.data.export.imagenet_plan import (
    ChunkPlan,
    Layout,
    LeftOut,
    Settings,
    Split,
    TarReport,
    Work,
    draw_places,
    dump,
    load,
)
from sparknet.data.sources.label_file import Labels, write_labels
from sparknet.data.storage.fingerprint import fingerprint
from sparknet.data.storage.place import Place
from sparknet.errors import ConfigError, DataError

__all__ = ["Outcome", "begin", "complete", "finished_reports", "plan_work"]

_REQUESTS_AT_ONCE = 16
_NAMES_TOLD = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one split has come to."""

    split: Split
    entries: int
    """Lines of the label file."""
    images: int
    """In the chunks."""
    corrupt: tuple[LeftOut, ...]
    missing: tuple[str, ...]
    unlabelled: int
    unlabelled_examples: tuple[str, ...]
    chunks: int
    kept: int
    """Chunks that were there before."""
    made_images: int
    """In the chunks that were not."""
    bytes: int
    """Of all chunks."""


def plan_work(split: Split, settings: Settings, *, tar: Place, labels: Place, destination: Place) -> Work:
    """Find out what is to be done; nothing is written.

    Args:
        split: which of the two.
        settings: what the user chose.
        tar: the archive as it was published.
        labels: lines `NAME LABEL`; directories in names do not matter.
        destination: directory of chunks, records and label file.

    Raises:
        ConfigError: more chunks than images, or the destination holds chunks of another plan.
        DataError: archive or label file is missing, damaged, or of another kind.
    """
    facts = tar.facts()
    if facts is None or facts.is_directory:
        what = "it is a directory" if facts else "there is no such file"
        raise DataError(f"{tar}: {what}; the {split} archive is a tar file: set --{split}-tar")
    entries = Labels.read(labels)
    plan = ChunkPlan(
        split=split,
        settings=settings,
        images=len(entries),
        labels=fingerprint({"entries": list(entries.items())}),
        source=tar.name,
        source_bytes=facts.bytes,
    )
    # Before the archive is walked, which costs a request for each class.
    layout = Layout(destination=destination, plan=plan)
    _check_destination(layout)
    places = draw_places(plan)
    return Work(
        archive=tar,
        layout=layout,
        labels=entries,
        places=places,
        entries=np.argsort(places),
        pieces=tuple(cut_pieces(tar, plan)),
        kept=finished_reports(layout),
    )


def _check_destination(layout: Layout) -> None:
    """Refuse to mix chunks of two plans, or with files that are not ours."""
    if layout.plan_file.facts() is None:
        strangers = layout.chunk_directory.files("*.tar")
        if strangers:
            raise ConfigError(
                f"{layout.chunk_directory} holds {len(strangers)} tar files, but {layout.plan_file}, which would "
                "say how they were made, is not there; chunks are not mixed: delete them, or give another --to"
            )
        return
    differences = layout.plan.differences(load(layout.plan_file, ChunkPlan))
    if differences:
        raise ConfigError(
            f"{layout.destination} has {layout.plan.split} chunks with {', '.join(differences)}; who goes on must "
            f"ask for the same: repeat those settings, give another --to, or delete {layout.chunk_directory} and "
            f"{layout.plan_file}"
        )


def finished_reports(layout: Layout) -> dict[int, TarReport]:
    """The reports of the chunks whose tar file is there in the size reported, by chunk.

    Raises:
        DataError: the destination cannot be read.
    """
    # One listing and not a look-up for each chunk; the size finds files that somebody cut or replaced.
    sizes = {file.name: file.bytes for file in layout.chunk_directory.files("*.tar")}
    places = layout.record_directory.children(f"{layout.plan.split}.[0-9]*.json")
    # A thousand small files: one after the other they would take a minute from an object store.
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        reports = list(pool.map(lambda place: load(place, TarReport), places))
    return {
        report.chunk: report for report in reports if sizes.get(layout.chunk(report.chunk).name) == report.bytes
    }


def begin(work: Work) -> None:
    """Write down the plan, so that only the same one goes on here.

    Raises:
        DataError: the destination cannot be written.
    """
    if work.layout.plan_file.facts() is None:
        # without a plan a report says nothing: its settings may have been others
        for record in work.layout.record_directory.children(f"{work.plan.split}.[0-9]*.json"):
            record.delete()
        work.layout.plan_file.write(dump(work.plan))


def complete(work: Work, *, corrupt_share: float) -> Outcome:
    """Verify that every chunk is there and write the label file.

    Args:
        work: of which all chunks have been made.
        corrupt_share: of the images; more corrupt ones are an error, and there is no label file then.

    Raises:
        DataError: a chunk is not seen from here, or too many images are corrupt.
    """
    # Looked up and not taken from the tasks: what they wrote into a directory that is not shared is not seen here.
    reports = finished_reports(work.layout)
    lacking = [number for number in range(work.plan.settings.chunks) if number not in reports]
    if lacking:
        raise DataError(
            f"{work.layout.chunk(lacking[0])} was written by a worker but is not seen here; --to must be a place "
            "that the driver and every worker reach: give another one"
        )
    ordered = [reports[number] for number in range(work.plan.settings.chunks)]
    result = _outcome(work, ordered)
    _check_corrupt(result, corrupt_share)
    # Last of all: who finds a label file finds all of its images.
    write_labels(work.layout.label_file, _labelled(work, result))
    for directory in (work.layout.chunk_directory, work.layout.record_directory):
        for left in directory.children(f".{work.plan.split}.*.part"):  # by tasks that were killed
            left.delete()
    return result


def _outcome(work: Work, reports: Sequence[TarReport]) -> Outcome:
    corrupt = [image for report in reports for image in report.corrupt]
    missing = [name for report in reports for name in report.missing]
    damage = next((stretch for report in reports for stretch in report.stretches), None)
    if damage:
        # Nobody can say what was in a damaged stretch: an image that was not found may have been, so it counts.
        corrupt.extend(LeftOut(name=name, reason=damage) for name in missing)
        missing = []
    return Outcome(
        split=work.plan.split,
        entries=work.plan.images,
        images=sum(report.images for report in reports),
        corrupt=tuple(corrupt),
        missing=tuple(missing),
        unlabelled=sum(report.unlabelled for report in reports),
        unlabelled_examples=tuple(name for report in reports for name in report.unlabelled_examples),
        chunks=len(reports),
        kept=len(work.kept),
        made_images=sum(report.images for report in reports if report.chunk not in work.kept),
        bytes=sum(report.bytes for report in reports),
    )


def _labelled(work: Work, result: Outcome) -> Iterator[tuple[str, int]]:
    """Base name and label of each image in the chunks, in their order."""
    left_out = {*(image.name for image in result.corrupt), *result.missing}
    for place in range(work.plan.images):
        name = work.name_at(place)
        if name not in left_out:
            yield name, int(work.labels.values[work.entries[place]])


def _check_corrupt(result: Outcome, corrupt_share: float) -> None:
    """Refuse more corrupt images than a share of all.

    Raises:
        DataError: names the first of them.
    """
    count = len(result.corrupt)
    if count > corrupt_share * result.entries:
        told = "; ".join(f"{image.name}: {image.reason}" for image in result.corrupt[:_NAMES_TOLD])
        more = f"; and {count - _NAMES_TOLD} more" if count > _NAMES_TOLD else ""
        raise DataError(
            f"{count} of {result.entries} {result.split} images are corrupt, more than {corrupt_share:g} of them; "
            "the chunks are kept: fetch the archive again, or raise --corrupt-share and give the same command. "
            f"These are: {told}{more}"
        )
