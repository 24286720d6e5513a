"""The pages of an LMDB file, read without the library: where each key's value lies, every offset checked.

The library trusts what it maps: a damaged page ends the whole process by a signal, and one process may open a
database only once. Here a damaged page is a DataError, nothing is opened twice, and a few ranged reads tell what a
remote database holds. The layout is that of LMDB 0.9 on 64-bit little-endian machines (`mdb.c`: MDB_meta, MDB_page,
MDB_node), of one database without duplicate keys, which is what Caffe writes.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sparknet.errors import DataError

__all__ = ["Child", "Fetch", "Header", "Leaf", "Tree", "read_header"]

Fetch = Callable[[int, int], bytes | memoryview]
"""Gives bytes of the file: from an offset, so many; fewer at the file's end."""

Child = tuple[bytes, int]
"""A page by its number, and the least key that it may hold (empty: any)."""

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
_NODE_HEADER = 8
_META_BYTES = 152
_BRANCH, _LEAF, _META = 1, 2, 8  # page flags
_PAGE_KINDS = 0x0F | 0x60
_IN_OTHER_PAGES, _KNOWN_NODE_FLAGS = 1, 1
_FIRST_DATA_PAGE = 2
_NO_PAGE = (1 << 64) - 1
_DEEPEST = 32
_PAGE_SIZES = tuple(1 << power for power in range(9, 17))
_REMEDY = "copy the database again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What the newer of a file's two meta pages says."""

    page_bytes: int
    """Size of a page."""
    pages: int
    """How many are in use, the two meta pages among them."""
    entries: int
    """Keys in the database."""
    depth: int
    """Levels of the tree: 1 for a single leaf page."""
    root: int
    """The page at its top."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Leaf:
    """One leaf page: its keys in order, and where in the file their values lie."""

    keys: list[bytes]
    """Each above the one before."""
    offsets: np.ndarray
    """int64 [keys]: bytes from the file's beginning."""
    sizes: np.ndarray
    """int64 [keys]: bytes of the values; offset and size lie within the pages in use."""


def read_header(fetch: Fetch, *, size: int, where: str) -> Header:
    """Read the meta pages and hold the file's size against them.

    Args:
        fetch: gives the file's bytes.
        size: of the file, bytes.
        where: the file, for messages.

    Raises:
        DataError: this is no LMDB file of a kind that can be read, or it is truncated.
    """
    # The page size stands in the first meta page, and where the second one is depends on it.
    first = _meta(fetch(0, _META_BYTES), where=where)
    page_bytes = first[0].page_bytes
    second = _meta(fetch(page_bytes, _META_BYTES), where=where)
    # Transactions write the two pages in turn: the newer one counts.
    header = max(first, second, key=lambda meta: meta[1])[0]
    # It may be larger: with a writable map (MDB_WRITEMAP) the library makes the file as large as the map.
    if size < header.pages * page_bytes:
        raise DataError(
            f"{where}: truncated: {size} bytes; its {header.pages} pages of {page_bytes} bytes take "
            f"{header.pages * page_bytes}: {_REMEDY}"
        )
    return header


def _meta(page: bytes | memoryview, *, where: str) -> tuple[Header, int]:
    """What a meta page says, and its transaction's number."""
    if len(page) < _META_BYTES:
        raise DataError(f"{where}: no LMDB file: it ends within its first two pages; {_REMEDY}")
    # MDB_page: number 8, pad 2, flags 2, bounds 4; MDB_meta: magic 4, version 4, address 8, map size 8, then the
    # records of two databases, of which the first (free pages) says the page size and the second is ours.
    flags, magic, version = struct.unpack_from("<10xH4xII", page)
    if not flags & _META or magic != _MAGIC:
        raise DataError(
            f"{where}: no LMDB file: it does not begin with LMDB's meta pages (64-bit, little-endian); "
            "name the data.mdb of a database"
        )
    if version != _VERSION:
        raise DataError(f"{where}: LMDB data version {version}; only {_VERSION} is read: write it with LMDB 0.9")
    page_bytes, *_ = struct.unpack_from("<I", page, 40)
    kind, depth, entries, root, last, transaction = struct.unpack_from("<4xHH24xQQQQ", page, 88)
    # Checked before any product with them: everything below trusts these numbers.
    if page_bytes not in _PAGE_SIZES or depth > _DEEPEST or last + 1 < _FIRST_DATA_PAGE:
        raise DataError(
            f"{where}: damaged meta page: pages of {page_bytes} bytes, {depth} levels, last page {last}; {_REMEDY}"
        )
    # The highest bit (MDB_VALID) has a meaning in the library's memory only.
    if kind & 0x7FFF:
        raise DataError(
            f"{where}: a database with flags {kind:#x} (duplicate, reversed or integer keys); Caffe's have none: "
            "write its records into a plain one"
        )
    pages = last + 1
    return Header(page_bytes=page_bytes, pages=pages, entries=entries, depth=depth, root=root), transaction


class Tree:
    """The keys of one database, in order, through its branch and leaf pages."""

    def __init__(self, fetch: Fetch, *, size: int, where: str) -> None:
        """Read the header of the file that `fetch` gives; see `read_header`.

        Raises:
            DataError: this is no LMDB file of a kind that can be read, or it is truncated.
        """
        self.header = read_header(fetch, size=size, where=where)
        self._fetch = fetch
        self._where = where
        self._rows = 0
        self._last = b""

    def leaves(self, first_key: bytes = b"", stop_key: bytes = b"") -> Iterator[Leaf]:
        """Yield the leaf pages that may hold keys from `first_key` to below `stop_key`.

        Args:
            first_key: not given: from the first leaf page on.
            stop_key: not given: to the last leaf page.

        Raises:
            DataError: a page is damaged; names it.
        """
        header = self.header
        if header.root == _NO_PAGE:  # an empty database
            return
        self._rows, self._last = 0, b""
        yield from self._below((b"", header.root), 1, first_key, stop_key)
        # Pages that are whole may still be of another transaction: then the count is wrong.
        if not (first_key or stop_key) and self._rows != header.entries:
            raise self._damaged(
                header.root, f"{self._rows} keys in all leaf pages, {header.entries} by the meta page"
            )

    def children(self, branches: Iterable[Child]) -> list[Child]:
        """The pages below branch pages that follow each other on one level, in order.

        Raises:
            DataError: a page is damaged; names it.
        """
        below = list[Child]()
        for branch in branches:
            found = self._children(branch)
            if any(low >= high for (low, _), (high, _) in pairwise([*below[-1:], *found])):
                raise self._damaged(branch[1], "its keys are not in order")
            below += found
        return below

    def _children(self, branch: Child) -> list[Child]:
        lowest, number = branch
        keys, nodes = self._nodes(self._page(number, _BRANCH), number)
        if len(keys) < 2:
            raise self._damaged(number, f"a branch page with {len(keys)} children")
        # LMDB leaves the first key of a branch page empty: it is whatever stands above.
        keys[0] = lowest
        # In a branch page the node's header holds 48 bits of a page's number: size low, size high and flags.
        return list(zip(keys, (nodes[:, 1] | nodes[:, 2] << 16 | nodes[:, 3] << 32).tolist(), strict=True))

    def _below(self, page: Child, level: int, first_key: bytes, stop_key: bytes) -> Iterator[Leaf]:
        # The header's depth ends the recursion, not the pages' flags: a page may point to itself.
        if level >= self.header.depth:
            yield self._leaf(page)
            return
        children = self._children(page)
        for place, (key, number) in enumerate(children):
            # The next page begins at or before what is wanted: this one ends before it.
            if place + 1 < len(children) and first_key >= children[place + 1][0]:
                continue
            # Damage could have crossed two pages; each would be in order by itself.
            if place and self._rows and self._last >= key:
                raise self._damaged(number, "keys that belong to the next page")
            # Keys rise from here on, so nothing behind is wanted either.
            if place and stop_key and key >= stop_key:
                return
            yield from self._below((key, number), level + 1, first_key, stop_key)

    def _page(self, number: int, kind: int) -> np.ndarray:
        """The page's bytes as uint16 [page_bytes / 2]."""
        header = self.header
        if not _FIRST_DATA_PAGE <= number < header.pages:
            raise self._damaged(number, f"only pages {_FIRST_DATA_PAGE} to {header.pages - 1} hold data")
        # As 16-bit numbers: everything in a page but keys and values is one or several of them.
        page = np.frombuffer(self._fetch(number * header.page_bytes, header.page_bytes), "<u2")
        if 2 * len(page) != header.page_bytes:
            raise self._damaged(number, "the file ends within it")
        # Each page carries its number, which finds pages that a copy or a disk put in the wrong place.
        own = int(page[:4].view("<u8")[0])
        if own != number or page[5] & _PAGE_KINDS != kind:
            raise self._damaged(number, f"it says it is page {own} with flags {page[5]:#x}")
        return page

    def _nodes(self, page: np.ndarray, number: int) -> tuple[list[bytes], np.ndarray]:
        """Keys, and int64 [keys, 5]: offset within the page, and the four numbers of the node's header."""
        size, lower, upper = self.header.page_bytes, int(page[6]), int(page[7])
        if not (_PAGE_HEADER < lower <= upper <= size and lower % 2 == 0):
            raise self._damaged(number, f"keys end at {lower} and nodes begin at {upper} of {size} bytes")
        # Checked all at once before any of them is used: what follows trusts every offset.
        starts = page[_PAGE_HEADER // 2 : lower // 2].astype(np.int64)
        if starts.min() < upper or starts.max() > size - _NODE_HEADER or (starts & 1).any():
            raise self._damaged(number, "a node lies outside")
        nodes = np.column_stack((starts, page[starts[:, None] // 2 + np.arange(4)]))
        ends = starts + _NODE_HEADER + nodes[:, 4]
        if ends.max() > size:
            raise self._damaged(number, "a key goes beyond its end")
        # One copy of the page: keys outlive what `fetch` gave.
        content = page.tobytes()
        begins = (starts + _NODE_HEADER).tolist()
        return [content[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)], nodes

    def _leaf(self, leaf: Child) -> Leaf:
        lowest, number = leaf
        page = self._page(number, _LEAF)
        keys, nodes = self._nodes(page, number)
        before = self._last if self._rows else lowest
        if (
            keys[0] < lowest
            or (self._rows and keys[0] <= before)
            or any(low >= high for low, high in pairwise(keys))
        ):
            raise self._damaged(number, "its keys are not in order")
        self._rows, self._last = self._rows + len(keys), keys[-1]
        # Also the bound on the walk: pages that point in circles would otherwise never end.
        if self._rows > self.header.entries:
            raise self._damaged(number, f"more keys than the {self.header.entries} of the meta page")
        # Their values are pages of other trees, not bytes.
        if (nodes[:, 3] & ~_KNOWN_NODE_FLAGS).any():
            raise self._damaged(number, "it holds duplicate keys or databases within the database")
        starts = nodes[:, 0] + _NODE_HEADER + nodes[:, 4]
        sizes = nodes[:, 1] | nodes[:, 2] << 16
        # A value of more than about half a page has pages of its own; in its place stands the first one's number.
        big = (nodes[:, 3] & _IN_OTHER_PAGES).astype(bool)
        ends = starts + np.where(big, 8, sizes)
        if ends.max() > self.header.page_bytes:
            raise self._damaged(number, "a value goes beyond its end")
        offsets = starts + number * self.header.page_bytes
        if big.any():
            offsets[big] = self._in_other_pages(page, number, starts[big], sizes[big])
        return Leaf(keys=keys, offsets=offsets, sizes=sizes)

    def _in_other_pages(self, page: np.ndarray, number: int, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Where values lie that have pages of their own."""
        header, content = self.header, page.view(np.uint8)
        firsts = np.ascontiguousarray(content[starts[:, None] + np.arange(8)]).view("<u8")[:, 0]
        # Bounded before the product: a number of 64 bits times the page size would wrap round into the file.
        ends = np.minimum(firsts, header.pages).astype(np.int64) * header.page_bytes + _PAGE_HEADER + sizes
        if firsts.min() < _FIRST_DATA_PAGE or ends.max() > header.pages * header.page_bytes:
            raise self._damaged(number, "a value lies outside the pages in use")
        return firsts.astype(np.int64) * header.page_bytes + _PAGE_HEADER

    def _damaged(self, number: int, why: str) -> DataError:
        return DataError(f"{self._where}: damaged page {number}: {why}; {_REMEDY}")
