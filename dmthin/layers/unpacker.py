"""Unpacking entries below a root directory. No path, link or order of entries can make it write outside the root."""

import errno
import os
import stat
from contextlib import suppress
from dataclasses import replace

from dmthin.errors import DmthinError, InvalidValue, KernelError, NoDataSpace
from dmthin.kernel.openat import open_entry
from dmthin.layers.attributes import AttributeSetter
from dmthin.layers.confine import MAX_PATH, ConfinedTree, OpenDirectory, split
from dmthin.layers.entry import NO_DATA, Entry, EntryType, Reader, shown
from dmthin.layers.idmap import Owners, Unmapped
from dmthin.layers.nodewriter import NodeWriter
from dmthin.layers.whiteout import LINK_TARGETS, PREFIX, CreatedNames, WhiteoutKind, whiteout_kind
from dmthin.os_errors import TREE_WRITE, explain

LATEST = (1 << 63) - 1
"""The latest time in a layer, in nanoseconds since 1970: what a 64-bit number holds, year 2262 (moby's boundTime)."""

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


class Unpacker:
    """Creates entries, one by one, below a root directory. It must have exclusive access to the tree.

    Paths are relative to the root; `..` cannot leave it, and a leading slash is ignored. Symbolic links among parents
    are followed within the root; missing parents are created with mode 0755. An existing inode is replaced, unless it
    and the entry are both directories. With `keep_owners` (needs root) everything gets the owner of its entry, mapped
    by `owners`; otherwise the caller's. `max_entries` limits the number of entries. Messages begin with `source`. The
    times of directories are restored when the unpacker is closed; use it as a context manager.

    With `layer`, the entries are an image layer, applied to the tree of the layer below as Docker and containerd do:
    names that begin with `.wh.` are whiteouts; zeros in file data become holes, because a layer's tar has no sparse
    files; times before 1970 and after 2262 become 0; a hard link's header sets the attributes of its inode. The names
    that the layer creates are then kept in memory, because an opaque whiteout must not remove them.

    The constructor raises InvalidValue (the container's root is not in the id map) and KernelError. After an error the
    tree is incomplete, and the caller should discard it.
    """

    def __init__(
        self,
        root: int | str | os.PathLike[str],
        *,
        source: str = "",
        keep_owners: bool = True,
        max_entries: int | None = None,
        layer: bool = False,
        owners: Owners | None = None,
    ) -> None:
        self._prefix = f"{source}: " if source else ""
        self._owners = owners or Owners()
        self._max_entries = max_entries
        self._attributes = AttributeSetter(prefix=self._prefix, keep_owners=keep_owners)
        self._created = CreatedNames() if layer else None
        self._has_link_targets = False
        self.entries = 0
        self.bytes = 0
        try:
            self._root_owner = self._owners.root if keep_owners else None
        except Unmapped as error:
            raise self._invalid(str(error)) from None
        try:
            fd = root if isinstance(root, int) else os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._tree = ConfinedTree(fd)
            finally:
                if fd != root:
                    os.close(fd)
        except OSError as error:
            raise KernelError(f"cannot unpack to {root}: {error.strerror}", errno=error.errno or 0) from error
        writer = NodeWriter(self._tree, self._attributes, prefix=self._prefix, layer=layer)
        self._create = writer.create

    def __enter__(self) -> "Unpacker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the times of directories and close them. Raise KernelError."""
        try:
            try:
                self._remove_link_targets()
            finally:
                self._tree.close()
        except OSError as error:
            text = f"{self._prefix}cannot set the times of directories: {error.strerror}"
            raise KernelError(text, errno=error.errno or 0) from error

    def apply(self, entry: Entry, data: Reader = NO_DATA) -> None:
        """Create one entry, with the data that `data` returns.

        Raise InvalidValue (an invalid entry), NoDataSpace (the volume is full: the message names the entry, and the
        caller may add the volume's size to `hint`), NotPermitted, Unavailable (no openat2(2), no /proc) or KernelError;
        and what `data` raises.
        """
        self.entries += 1
        if self._max_entries is not None and self.entries > self._max_entries:
            raise self._invalid(f"more than {self._max_entries} entries")
        path = entry.path
        if len(path) > MAX_PATH or b"\0" in path:
            reason = "contains a NUL" if b"\0" in path else f"is longer than {MAX_PATH} bytes"
            raise self._invalid(f"the path {shown(path)} {reason}")
        parent_path, name = split(path)
        try:
            self._tree.trim()
            if self._created is not None and not self._is_created(entry, parent_path, name):
                self.bytes += entry.size
                return
            if self._created is not None and not 0 <= entry.mtime_ns <= LATEST:
                entry = replace(entry, mtime_ns=0)
            entry = self._owners.to_host(entry)
            if entry.type is EntryType.DIRECTORY:
                self._directory(entry, parent_path, name)
            elif not name:
                raise self._invalid(f"the {entry.type.value} {shown(path)} would replace the root")
            else:
                parent = self._parent(entry, parent_path)
                create = self._create[entry.type]
                try:
                    create(entry, parent, name, data)
                except FileExistsError:
                    self._tree.remove(parent, name)
                    create(entry, parent, name, data)
                parent.dirty = True
                self._record(parent, name)
        except Unmapped as error:
            raise self._invalid(str(error)) from None
        except OSError as error:
            raise self._translated(entry, error) from error
        self.bytes += entry.size

    def _is_created(self, entry: Entry, parent_path: bytes, name: bytes) -> bool:
        """Return whether a layer's entry is to be created; if it is a whiteout instead, carry it out.

        Raise InvalidValue, OSError.
        """
        kind = whiteout_kind(parent_path, name, is_file=entry.type is EntryType.FILE)
        if kind is WhiteoutKind.NONE:
            return True
        if kind is WhiteoutKind.MALFORMED:
            raise self._invalid(f"{shown(entry.path)} is a whiteout without a name")
        if kind is WhiteoutKind.LINK_TARGET:
            if not self._has_link_targets:
                self._has_link_targets = True
                # A container may have created something under this name: it must not appear in the layer.
                self._remove(self._tree.directory(b""), LINK_TARGETS)
            return True
        if kind is not WhiteoutKind.IGNORED:
            try:
                parent = self._tree.directory(parent_path)
            except FileNotFoundError:
                # Engines create the directory even if there is nothing in it to delete; a dangling link stays.
                with suppress(FileExistsError):
                    self._tree.make_directory(parent_path, owner=self._root_owner)
                return False
            except NotADirectoryError:
                return False
            if kind is WhiteoutKind.DELETE:
                self._remove(parent, name[len(PREFIX) :])
            else:
                assert self._created is not None
                self._tree.empty(parent, self._created.contains)
        return False

    def _remove(self, parent: OpenDirectory, name: bytes) -> None:
        with suppress(FileNotFoundError):
            self._tree.remove(parent, name)

    def _remove_link_targets(self) -> None:
        if self._has_link_targets:
            self._has_link_targets = False
            self._remove(self._tree.directory(b""), LINK_TARGETS)

    def _record(self, parent: OpenDirectory, name: bytes) -> None:
        if self._created is not None:
            self._created.add(parent.identity[1], name)

    def _parent(self, entry: Entry, path: bytes) -> OpenDirectory:
        """Return the directory at a normalized `path`, created if it is missing. Raise InvalidValue, OSError."""
        try:
            return self._tree.directory(path)
        except FileNotFoundError:
            pass
        try:
            return self._tree.make_directory(path, owner=self._root_owner)
        except FileExistsError as error:
            link = shown(os.fsencode(error.filename))
            raise self._invalid(f"{shown(entry.path)} is below {link}, a dangling symbolic link") from None

    def _directory(self, entry: Entry, parent_path: bytes, name: bytes) -> None:
        inherited = False
        if name:
            parent = self._parent(entry, parent_path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent.fd)
                parent.dirty = inherited = True
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                    self._tree.remove(parent, name)
                    os.mkdir(name, 0o700, dir_fd=parent.fd)
                    inherited = True
            inherited = inherited and parent.has_default_acl
            self._record(parent, name)
            fd = open_entry(parent.fd, name)
            directory = self._tree.adopt(parent_path + b"/" + name if parent_path else name, fd)
        else:
            directory = self._tree.directory(b"")
        self._attributes.set_on_fd(entry, directory.fd, inherited=inherited)
        directory.forget_default_acl()
        directory.atime_ns = directory.mtime_ns = entry.mtime_ns
        directory.dirty = True

    def _invalid(self, text: str) -> InvalidValue:
        return InvalidValue(self._prefix + text)

    def _translated(self, entry: Entry, error: OSError) -> DmthinError:
        """Return the error to raise for an OSError on creating `entry`."""
        what = f"{entry.type.value} {shown(entry.path)}"
        if error.errno in _FULL:
            return NoDataSpace(f"no space left for the {what}")
        failed, reason = f"{self._prefix}cannot create the {what}", error.strerror or str(error)
        if error.errno == errno.EACCES and os.geteuid() == 0:  # Docker fails here too
            cause = "fs.protected_symlinks forbids following another user's link in a sticky directory"
            return InvalidValue(f"{failed}: {reason}; {cause}")
        return explain(error.errno or 0, failed, TREE_WRITE, reason=reason)
