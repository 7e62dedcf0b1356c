# SPDX-License-Identifier: Apache-2.0
"""Where a spool's files are. A file appears whole or not at all.

Object stores are reached by pyarrow's file systems, as the library shows no files of its own and
the command line has no verb to put a result. They have no conditional put: two drivers that begin
one spool at the same moment are found out before either commits (`Spool.check`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile

from lance_tasks.errors import InvalidArgumentError, StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Place(Protocol):
        """Names are relative, with ``/`` between their parts."""

        def get(self, name: str) -> bytes | None:
            """A file, or None."""

        def put(self, name: str, data: bytes) -> None:
            """Write a file, or replace it."""

        def put_new(self, name: str, data: bytes) -> bool:
            """Write a file where there is none; is it there now as it is here?"""

        def list(self, folder: str) -> list[str]:
            """The names in a folder."""

        def delete(self, name: str) -> None:
            """Remove a file, if it is there."""


def open_place(place: str, storage_options: Mapping[str, str]) -> Place:
    """A folder by its path or ``file://``, or a place in an object store by its URI.

    Raises:
        InvalidArgumentError: the URI carries credentials, or is of no store that is known here.
    """
    local = place.removeprefix("file://")
    if not local.strip():
        raise InvalidArgumentError("the spool's place is empty")
    if "://" not in local:
        return _Folder(os.path.abspath(local))
    scheme, _, rest = local.partition("://")
    if "?" in rest or ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise InvalidArgumentError(
            "the spool's URI carries credentials or a query; give them by spool_storage_options"
        )
    return _Store(place, _file_system(scheme, rest, storage_options), rest.strip("/"))


class _Folder:
    def __init__(self, root: str) -> None:
        self._root = root

    def get(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, name), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        with self._beside(name, data) as (temporary, path):
            os.replace(temporary, path)

    def put_new(self, name: str, data: bytes) -> bool:
        with self._beside(name, data) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                return self.get(name) == data
            finally:
                os.unlink(temporary)
        return True

    @contextlib.contextmanager
    def _beside(self, name: str, data: bytes) -> Any:
        """A synced file in the folder where it is to appear. Its name is the command line's."""
        path = os.path.join(self._root, name)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o666 & ~_umask())
                file.write(data)
                file.flush()
                os.fsync(handle)
            yield temporary, path
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def list(self, folder: str) -> list[str]:
        try:
            names = os.listdir(os.path.join(self._root, folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(os.path.join(self._root, name))


def _umask() -> int:
    # There is no way to ask for it without setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class _Store:
    def __init__(self, uri: str, fs: Any, root: str) -> None:
        self._uri = uri
        self._fs = fs
        self._root = root

    def _failed(self, name: str, error: OSError) -> StorageError:
        return StorageError(f"spool {self._uri}: {name}: {error}")

    def get(self, name: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(f"{self._root}/{name}") as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._failed(name, e) from None

    def put(self, name: str, data: bytes) -> None:
        try:
            with self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                stream.write(data)
        except OSError as e:
            raise self._failed(name, e) from None

    def put_new(self, name: str, data: bytes) -> bool:
        there = self.get(name)
        if there is None:
            self.put(name, data)
            there = self.get(name)
        return there == data

    def list(self, folder: str) -> list[str]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._fs.get_file_info(selector))
        except OSError as e:
            raise self._failed(folder, e) from None

    def delete(self, name: str) -> None:
        try:
            self._fs.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except OSError as e:
            raise self._failed(name, e) from None


# Lance's options by what pyarrow calls them; without a prefix they mean the same to Lance.
_S3 = {
    "access_key_id": "access_key",
    "secret_access_key": "secret_key",
    "session_token": "session_token",
    "token": "session_token",
    "region": "region",
    "default_region": "region",
    "endpoint": "endpoint_override",
    "endpoint_url": "endpoint_override",
}
_AZURE = {
    "account_name": "account_name",
    "account_key": "account_key",
    "access_key": "account_key",
    "sas_token": "sas_token",
    "sas_key": "sas_token",
}


def _file_system(scheme: str, rest: str, options: Mapping[str, str]) -> Any:
    from pyarrow import fs

    if scheme in ("s3", "s3a"):
        given = _named(options, "aws_", _S3)
        if endpoint := given.pop("endpoint_override", None):
            kind, _, address = endpoint.rpartition("://")
            given |= {"scheme": kind or "https", "endpoint_override": address.rstrip("/")}
        return fs.S3FileSystem(**given)
    if scheme in ("az", "abfs", "abfss"):
        given = _named(options, "azure_storage_", _AZURE)
        endpoint = options.get("azure_storage_endpoint") or options.get("azure_endpoint")
        if endpoint:
            kind, _, address = endpoint.rpartition("://")
            authority = address.partition("/")[0]
            given |= {
                "blob_storage_authority": authority,
                "dfs_storage_authority": authority,
                "blob_storage_scheme": kind or "https",
                "dfs_storage_scheme": kind or "https",
            }
        given.setdefault("account_name", os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", ""))
        return fs.AzureFileSystem(**given)
    if scheme in ("gs", "gcs"):
        return fs.GcsFileSystem()
    raise InvalidArgumentError(f"spool {scheme}://{rest}: no store of this kind is known here")


def _named(options: Mapping[str, str], prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    given = {}
    for key, value in options.items():
        name = names.get(key.lower().removeprefix(prefix))
        if name is not None:
            given[name] = value
    return given
