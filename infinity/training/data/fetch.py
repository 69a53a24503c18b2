"""Pinned packages from the registry clients' own configuration, checked against their hashes."""

import base64
import hashlib
import logging
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from infinity.errors import UserError
from infinity.training.data.sources import Package

logger = logging.getLogger(__name__)

PACKAGE_CACHE = Path(".data/packages")


def fetch(package: Package, cache: Path = PACKAGE_CACHE) -> Path:
    """Path of the package's archive in ``cache``, downloaded if it is not there yet.

    npm packages come through ``npm pack`` and PyPI packages through ``pip download``, so that the
    registry, proxy and certificates which this machine is set up for apply.

    Args:
        package: what to fetch.
        cache: folder of archives; created when missing.

    Returns:
        The archive, whose hash equals ``package.integrity``.

    Raises:
        UserError: the download failed, or an archive's hash is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / archive_name(package)
    if not path.exists():
        logger.info("Fetching %s %s from %s", package.name, package.version, package.registry)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(package, Path(folder))
            found = [p for p in Path(folder).iterdir() if p.suffix in {".tgz", ".whl"}]
            if len(found) != 1:
                raise UserError(
                    f"{package.registry} gave {len(found)} archives for {package.name} "
                    f"{package.version}; exactly one .tgz or .whl is needed."
                )
            verify(found[0], package)
            found[0].replace(path)
    verify(path, package)
    return path


def archive_name(package: Package) -> str:
    """File name of the package's archive in the cache."""
    stem = package.name.lstrip("@").replace("/", "-")
    return f"{stem}-{package.version}.{'tgz' if package.registry == 'npm' else 'whl'}"


def verify(path: Path, package: Package) -> None:
    """Return if the file's hash is the pinned one.

    Raises:
        UserError: it is not.
    """
    kind, _, expected = package.integrity.partition("-")
    digest = hashlib.new(kind, path.read_bytes())
    actual = base64.b64encode(digest.digest()).decode() if kind == "sha512" else digest.hexdigest()
    if actual != expected:
        raise UserError(
            f"{path}: the {kind} of {package.name} {package.version} is {actual}, but "
            f"infinity/training/data/sources.py pins {expected}; delete the file and try again."
        )


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the regular files of an archive whose names are ``wanted``, keyed by name.

    Nothing is written to disk, so no member name can point outside a folder; links are skipped.
    npm's leading ``package/`` is removed from names.

    Raises:
        UserError: the archive cannot be read.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as bundle:
                return {n: bundle.read(n) for n in bundle.namelist() if wanted(n)}
        out: dict[str, bytes] = {}
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("package/")
                if member.isreg() and wanted(name):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    out[name] = stream.read()
        return out
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{archive}: not a readable package archive ({error}).") from error


def _download(package: Package, folder: Path) -> None:
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "-d", ".", f"{package.name}=={package.version}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is needed to fetch {package.name}, but is not installed."
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{package.registry} could not provide {package.name} {package.version}: {reason}"
        ) from error
