"""Image files of 4x6 pixels, in directories and archives."""

import io
import tarfile

from PIL import Image


def jpeg(number):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 2 * number, 0)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(directory, classes):
    made = {}
    for number, name in enumerate(f"{kind}/{file}" for kind, files in classes.items() for file in files):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        made[name] = jpeg(number)
        (directory / name).write_bytes(made[name])
    return made
