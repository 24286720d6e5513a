"""`sparknet data imagenet`: the published archives of ImageNet to shuffled tar chunks."""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing

from pyspark.sql import SparkSession

from sparknet.cli.imagenet_screen import Screen
from sparknet.cli.job import ClusterAlone, count_workers, job_config
from sparknet.cli.spark_log import log_of_failures
from sparknet.config import Cluster
from sparknet.data.export.imagenet_job import Outcome, begin, complete, plan_work
from sparknet.data.export.imagenet_plan import Settings, Split, Work
from sparknet.data.storage.place import Storage
from sparknet.errors import DataError, UsageError
from sparknet.reporting.table import print_facts
from sparknet.spark.jobs.session import check_java, session_for
from sparknet.spark.preparing.imagenet import make_chunks

__all__ = ["run"]

_CHUNKS: dict[Split, int] = {"train": 1000, "val": 50}
"""As the original had them."""
_NAMES_TOLD = 5


def run(arguments: argparse.Namespace) -> int:
    """Make the chunks; everything that can be wrong without Spark is found before it starts."""
    began = time.monotonic()
    cluster = job_config(ClusterAlone, arguments).cluster
    # val first: it is small, so what is wrong with the settings shows early
    works = [_work(arguments, split) for split in _splits(arguments)]
    # Where every chunk is there only lists are to be written, which needs no Spark.
    results = [] if any(work.open_chunks for work in works) else [_complete(work, arguments) for work in works]
    if not results:
        check_java()  # before the plan is written: who installs it should find nothing begun
        # The plan first, on its own: a killed command finds there what it had begun.
        for work in works:
            begin(work)
        results = _make_all(works, arguments, cluster)
    _print_results(results, seconds=time.monotonic() - began)
    return 0


def _make_all(works: Sequence[Work], arguments: argparse.Namespace, cluster: Cluster) -> list[Outcome]:
    with closing(Screen()) as screen, log_of_failures("imagenet") as log:
        try:
            screen.note("starting Spark")
            workers = count_workers(arguments)
            tasks = "sparknet.spark.preparing.imagenet"
            with session_for(cluster, workers=workers, name="imagenet", log_path=log, preimport=tasks) as spark:
                return [_make(spark, work, arguments, screen) for work in works]
        except KeyboardInterrupt:
            screen.note("interrupted; the finished chunks stay, and the same command goes on")
            raise


def _splits(arguments: argparse.Namespace) -> list[Split]:
    given: dict[Split, tuple[str | None, int | None]] = {
        "val": (arguments.val_tar, arguments.val_chunks),
        "train": (arguments.train_tar, arguments.train_chunks),
    }
    for split, (archive, chunks) in given.items():
        if archive is None and chunks is not None:
            raise UsageError(
                f"--{split}-chunks {chunks} is given without --{split}-tar: give it, or leave both out"
            )
    splits: list[Split] = [split for split, (archive, _) in given.items() if archive is not None]
    if not splits:
        raise UsageError(
            "--train-tar and --val-tar are missing; sparknet data imagenet takes one or both: give one"
        )
    if not 0 <= arguments.corrupt_share <= 1:
        raise UsageError(f"--corrupt-share is {arguments.corrupt_share:g}; it is a share: give one from 0 to 1")
    return splits


def _work(arguments: argparse.Namespace, split: Split) -> Work:
    storage = Storage(s3_endpoint=arguments.s3_endpoint)
    destination = storage.place(arguments.to)
    facts = destination.facts()
    if facts is not None and not facts.is_directory:
        raise DataError(f"{destination} is a file; chunks go into a directory: give another --to")
    chunks = getattr(arguments, f"{split}_chunks")
    settings = Settings(
        width=arguments.width,
        height=arguments.height,
        chunks=_CHUNKS[split] if chunks is None else chunks,
        seed=arguments.seed,
        quality=arguments.quality,
    )
    tar = storage.place(getattr(arguments, f"{split}_tar"))
    labels = storage.place(arguments.labels) / f"{split}.txt"
    return plan_work(split, settings, tar=tar, labels=labels, destination=destination)


def _make(spark: SparkSession, work: Work, arguments: argparse.Namespace, screen: Screen) -> Outcome:
    split, chunks, kept = work.plan.split, work.plan.settings.chunks, len(work.kept)
    screen.note(
        f"{split}: {work.plan.images:,} images from {work.archive} into {chunks:,} chunks"
        + (f", of which {kept:,} are there" if kept else "")
    )
    make_chunks(spark, work, passes=arguments.passes, watch=lambda progress: screen.watch(split, progress))
    result = _complete(work, arguments)
    screen.note(f"{split}: all {chunks:,} chunks are there, and {work.layout.label_file}")
    return result


def _complete(work: Work, arguments: argparse.Namespace) -> Outcome:
    return complete(work, corrupt_share=arguments.corrupt_share)


def _print_results(results: Sequence[Outcome], *, seconds: float) -> None:
    facts = [fact for result in results for fact in _facts(result)]
    made = sum(result.made_images for result in results)
    facts.append(("time", f"{seconds:,.1f} s"))
    if made:
        facts.append(("speed", f"{made / seconds:,.0f} images/s"))
    print_facts(facts)


def _facts(result: Outcome) -> list[tuple[str, str]]:
    kept = f", {result.kept:,} of them kept" if result.kept else ""
    corrupt = [damage.name for damage in result.corrupt]
    counts = (
        ("corrupt", len(corrupt), corrupt),
        ("missing", len(result.missing), result.missing),
        ("unlabelled", result.unlabelled, result.unlabelled_examples),
    )
    return [
        (result.split, f"{result.images:,} of {result.entries:,} images"),
        ("  chunks", f"{result.chunks:,}, {_size(result.bytes)}{kept}"),
        *((f"  {name}", _counted(count, names)) for name, count, names in counts),
    ]


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def _counted(count: int, names: Sequence[str]) -> str:
    if not count:
        return "none"
    return f"{count:,}: {', '.join(names[:_NAMES_TOLD])}{', ...' if count > _NAMES_TOLD else ''}"
