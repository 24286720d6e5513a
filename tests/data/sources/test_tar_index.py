"""The walk over tar headers finds what `tarfile` and GNU tar know of, and goes on behind damage."""

import io
import os
import random
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.sources.tar_index import TarMember, index

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(entries, *, form="gnu", end=True):
    """Tar bytes of (name, data) pairs; `data` may also be a tarfile type of a member without data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes) and data[:1] != b"\1type":
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        offset = tar.offset
    return buffer.getvalue() if end else buffer.getvalue()[:offset]


def header(name, size, *, kind=b"0", magic=b"ustar\x0000", checksum=None):
    """One header block; `size` an integer or the 12 bytes of the field."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157], block[257:265] = b"0000644\0", field, kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) if checksum is None else checksum(block))
    return bytes(block)


def padded(data):
    return data + bytes(-len(data) % 512)


def walk(content, **bounds):
    return list(index(io.BytesIO(content), bounds.pop("stop", len(content)), **bounds))


def found(content):
    """Name and data of the members that are whole."""
    return [(m.name, content[m.offset : m.offset + m.bytes]) for m in walk(content) if not m.damage]


def by_tarfile(content):
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]


names = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
    ),
    min_size=1,
    max_size=6,
).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.tuples(names, st.binary(max_size=1500)), min_size=1, max_size=6),
    form=st.sampled_from(["gnu", "pax"]),
    end=st.booleans(),
)
def test_finds_what_tarfile_finds(entries, form, end):
    content = archive(entries, form=form, end=end)
    assert found(content) == by_tarfile(content) == entries


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.text("abc", min_size=1, max_size=60), min_size=1, max_size=4), data=st.binary(max_size=600)
)
def test_finds_prefixed_names(parts, data):
    name = "/".join(parts)
    try:
        content = archive([(name, data)], form="ustar")
    except ValueError:
        return  # ustar has no way to write this name
    assert found(content) == [(name, data)]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_reads_what_gnu_tar_writes(tmp_path, form):
    source = tmp_path / "source"
    (source / "n01440764").mkdir(parents=True)
    long = "x" * {"v7": 40, "ustar": 80}.get(form, 95)
    expected = {f"n01440764/{i}_{long}.JPEG": random.Random(i).randbytes(700 * i) for i in range(5)}
    for name, data in expected.items():
        (source / name).write_bytes(data)
    os.link(source / f"n01440764/3_{long}.JPEG", source / "zz_hard")
    (source / "soft").symlink_to("n01440764")
    os.mkfifo(source / "pipe")
    listed = ["n01440764", "soft", "pipe", "zz_hard"]
    if form == "v7":
        listed.remove("pipe")
    command = ["tar", f"--format={form}", "-cf", tmp_path / "a.tar", "-C", source, *listed]
    subprocess.run(command, check=True, capture_output=True)
    content = (tmp_path / "a.tar").read_bytes()
    assert dict(found(content)) == expected
    assert found(content) == by_tarfile(content)


def test_says_where_headers_and_data_begin():
    content = archive([("a", b"1" * 600), ("b" * 150, b"22")], form="gnu")
    first, second = walk(content)
    assert first == TarMember(name="a", start=0, offset=512, bytes=600)
    assert second.start == 512 + 1024  # of the long name that comes before the header
    assert second.offset == second.start + 3 * 512
    assert walk(content, start=second.start) == [second]
    assert walk(content, stop=second.start) == [first]


def test_reads_sizes_in_base_256():
    field = b"\x80" + (5).to_bytes(11, "big")
    assert found(header(b"a", field, magic=b"ustar  \0") + padded(b"12345")) == [("a", b"12345")]


def test_reads_checksums_of_signed_bytes():
    def signed(block):
        return sum(byte - 256 * (byte > 127) for byte in block)

    content = header("é".encode(), 3, checksum=signed) + padded(b"123")
    assert found(content) == by_tarfile(content) == [("é", b"123")]


def test_pax_size_is_above_the_headers():
    record = b"10 size=5\n"
    content = header(b"p", len(record), kind=b"x") + padded(record) + header(b"a", 0) + padded(b"12345")
    assert found(content) == by_tarfile(content) == [("a", b"12345")]


def test_global_records_and_gnu_times_name_nothing():
    record = b"19 comment=a words\n"
    times = bytearray(header(b"b", 1, magic=b"ustar  \0"))
    times[345:357] = b"14000000000\0"
    times[148:156] = b" " * 8
    times[148:156] = b"%06o\0 " % sum(times)
    content = header(b"g", len(record), kind=b"g") + padded(record) + bytes(times) + padded(b"1")
    assert found(content) == [("b", b"1")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"6"])
def test_links_and_directories_have_no_data_whatever_their_size(kind):
    content = header(b"x", 5000, kind=kind) + header(b"a", 1) + padded(b"1")
    assert found(content) == by_tarfile(content) == [("a", b"1")]


def test_old_directories_and_strange_kinds_are_passed_over():
    content = header(b"d/", 0, kind=b"\0", magic=bytes(8)) + header(b"v", 600, kind=b"V") + padded(b"v" * 600)
    content += (
        header(b"a", 1, kind=b"\0", magic=bytes(8)) + padded(b"1") + header(b"c", 1, kind=b"7") + padded(b"2")
    )
    assert found(content) == by_tarfile(content) == [("a", b"1"), ("c", b"2")]


def test_sparse_files_are_damage_and_the_next_is_found(tmp_path):
    for form in ("gnu", "posix"):
        with (tmp_path / "holes.jpg").open("wb") as file:
            for hole in range(40):  # enough that GNU's map goes on in further blocks
                file.seek(hole << 16)
                file.write(b"x" * 4096)
        (tmp_path / "next.jpg").write_bytes(b"123")
        command = ["tar", f"--format={form}", "-S", "-cf", "a.tar", "holes.jpg", "next.jpg"]
        subprocess.run(command, check=True, cwd=tmp_path)
        content = (tmp_path / "a.tar").read_bytes()
        sparse, after = walk(content)
        assert sparse.name == "holes.jpg"
        assert "sparse" in sparse.damage
        assert (after.name, after.damage, content[after.offset :][: after.bytes]) == ("next.jpg", "", b"123")


@pytest.mark.parametrize("end", [True, False])
def test_the_end_marker_may_be_missing(end):
    entries = [("a", b"1"), ("b", b"2" * 512)]
    content = archive(entries, end=end)
    assert found(content) == entries
    assert len(walk(content)) == 2


def test_an_archive_may_end_without_padding():
    content = header(b"a", 3) + b"123"
    assert found(content) == [("a", b"123")]


def test_a_last_member_that_is_cut_short_is_named_with_what_is_there():
    content = archive([("a", b"1" * 700), ("b", b"2" * 1000)])[: 512 + 1024 + 512 + 300]
    whole, cut = walk(content)
    assert (whole.name, whole.damage) == ("a", "")
    assert cut == TarMember(
        name="b", start=1536, offset=2048, bytes=300, damage="cut short: 300 of 1000 bytes are there"
    )


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7, b"7" * 12])
def test_a_member_that_claims_exabytes_is_cut_short(size):
    (member,) = walk(header(b"a", size, magic=b"ustar  \0") + bytes(100))
    assert member.bytes == 100
    assert member.damage.startswith("cut short: 100 of ")


def test_a_volume_label_beyond_the_end_does_not_hide_the_rest():
    (member,) = walk(header(b"v", 5000, kind=b"V") + padded(b"1"))
    assert member.damage == "cut short: 512 of 5000 bytes are there"


def test_a_header_that_is_cut_off_is_damage():
    content = archive([("a", b"1"), ("b", b"2")], end=False)
    whole, rest = walk(content[: 1024 + 100])
    assert whole.name == "a"
    assert (rest.name, rest.start, rest.bytes) == ("", 1024, 100)
    assert "ends within a header" in rest.damage


def test_a_file_that_is_shorter_than_said_is_damage():
    (member,) = walk(b"x" * 512, stop=2048)
    assert "without a header" in member.damage
    (member,) = walk(header(b"L", 5000, kind=b"L") + b"x" * 100, stop=1 << 40)
    assert "the file ends within a header" in member.damage
    assert walk(b"", stop=2048) == []


def test_garbage_in_the_middle_is_one_stretch_and_what_follows_is_found():
    parts = [archive([(name, name.encode() * 700)], end=False) for name in "abc"]
    content = parts[0] + random.Random(1).randbytes(512 * 5) + parts[1] + b"\xff" * 1024 + parts[2] + bytes(1024)
    members = walk(content)
    assert [m.name for m in members] == ["a", "", "b", "", "c"]
    assert [(m.start, m.bytes) for m in members if m.damage] == [(1536, 2560), (1536 + 2560 + 1536, 1024)]
    assert found(content) == [(name, name.encode() * 700) for name in "abc"]


def test_a_damaged_header_costs_its_member_alone():
    content = bytearray(archive([("a", b"1" * 700), ("b", b"2" * 700), ("c", b"3")]))
    content[1536 + 124] ^= 1  # of the size of b
    assert [m.name for m in walk(bytes(content))] == ["a", "", "c"]
    assert "checksum" in walk(bytes(content))[1].damage


def test_a_header_is_found_on_both_sides_of_a_scanned_piece():
    last = archive([("z", b"1")])
    for blocks in (2046, 2047, 2048, 2049, 5000):
        content = b"\xff" * (512 * blocks) + last
        stretch, member = walk(content)
        assert (stretch.bytes, member.name, member.start) == (512 * blocks, "z", 512 * blocks)


def test_a_hole_of_zeros_does_not_hide_what_follows():
    content = bytearray(archive([(name, name.encode() * 700) for name in "abcd"]))
    content[1536 : 2 * 1536 + 600] = bytes(1536 + 600)  # b, and c's header with the beginning of its data
    assert [m.name for m in walk(bytes(content))] == ["a", "", "d"]


def test_archives_that_were_put_together_are_one():
    first, second = archive([("a", b"1")]), archive([("b", b"2")])
    assert found(first + second) == [("a", b"1"), ("b", b"2")]
    assert len(walk(first + second)) == 2


def test_anything_behind_the_end_marker_is_none_of_ours():
    content = archive([("a", b"1")])
    assert [m.name for m in walk(content + b"\xff" * 2000)] == ["a"]
    lone_zeros = archive([("a", b"1")], end=False) + bytes(512) + b"\xff" * 2000
    assert [m.name for m in walk(lone_zeros)] == ["a", ""]


def test_a_file_that_is_no_archive_is_one_stretch():
    (stretch,) = walk(b"\xff\xd8\xff\xe0" + bytes(3000))
    assert (stretch.start, stretch.bytes, stretch.name) == (0, 3004, "")


def test_an_empty_file_is_damage_and_an_empty_archive_is_not():
    (member,) = walk(b"")
    assert "empty" in member.damage
    assert walk(archive([])) == []


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"12 path=ab\n", "another form"),  # one too many
        (b"9 path=ab\n", "another form"),
        (b"x path=ab\n", "for a number"),
        (b"0 path=ab\n", "another form"),
        (b"99999999999999999999999 path=ab\n", "another form"),
        (b"7 path\n", "another form"),
        (b"11 size=-5\n", "for a number"),
        (b"11 size=1e\n", "for a number"),
    ],
)
def test_bad_pax_records_are_damage(record, why):
    content = header(b"p", len(record), kind=b"x") + padded(record) + header(b"a", 1) + padded(b"1")
    bad, good = walk(content)
    assert why in bad.damage
    assert (good.name, good.damage) == ("a", "")


@pytest.mark.parametrize(
    "size", [b"0000000000x\0", b"-0000000001\0", b"\xff" * 12, b"00000000_01\0", b"00000000009\0"]
)
def test_bad_sizes_are_damage(size):
    (member,) = walk(header(b"a", size) + padded(b"1"))
    assert "number" in member.damage


def test_long_names_are_bounded():
    content = header(b"L", 2 << 20, kind=b"L") + bytes(3 << 20)
    assert f"{2 << 20} bytes" in walk(content)[0].damage
    many = (header(b"L", 1, kind=b"L") + padded(b"a")) * 17 + header(b"a", 0)
    assert "more than 16" in walk(many)[0].damage
    holes = bytearray(header(b"s", 0, kind=b"S", magic=b"ustar  \0"))
    holes[482] = 1
    holes[148:156] = b" " * 8
    holes[148:156] = b"%06o\0 " % sum(holes)
    assert "blocks of holes" in walk(bytes(holes) + b"\1" * 512 * 300)[0].damage


def test_names_of_other_encodings_are_printable():
    ((name, _),) = found(header(b"caf\xe9.jpg", 1) + padded(b"1"))
    assert name == "caf\\xe9.jpg"


def test_a_header_without_a_name_is_damage():
    (member,) = walk(header(b"", 700) + padded(bytes(700)))
    assert (member.name, member.bytes, member.damage) == ("", 700, "its header has no name")


@pytest.mark.parametrize("kind", [b"1", b"2"])
def test_links_are_damage_where_they_are_asked_for(kind):
    content = header(b"x.jpg", 5000, kind=kind) + header(b"a", 1) + padded(b"1")
    assert [member.name for member in index(io.BytesIO(content), len(content))] == ["a"]
    link, file = index(io.BytesIO(content), len(content), links=True)
    assert (link.name, link.bytes, link.is_link) == ("x.jpg", 0, True)
    assert link.damage.startswith("a link, whose bytes stand elsewhere: pack the file itself (tar --dereference")
    assert (file.name, file.damage, file.is_link) == ("a", "", False)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_told_in_order_and_within_bounds(data):
    content = bytearray(archive([(f"{i}" * (1 + 60 * i), bytes([i]) * 700) for i in range(4)], form="pax"))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + 1] = data.draw(st.binary(max_size=3))
    del content[data.draw(st.integers(0, len(content))) :]
    end = 0
    for member in walk(bytes(content)):
        assert end <= member.start <= member.offset
        assert member.bytes >= 0
        assert member.offset + member.bytes <= len(content) or not member.bytes
        assert member.name or member.damage
        end = member.offset + member.bytes
