"""The system shared memory extension: regions that clients register, and that their tensors lie in.

Linux only: a region's key names a file in /dev/shm. It is read and written by offset, not mapped, so that a client which
cuts its file short gets an error, where a mapping would end the server.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lookwire_server.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Overloaded,
    SharedMemoryFailure,
    Unimplemented,
)
from lookwire_server.rpc.v2.parameters import Place

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
DISABLED = (
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable it, if all its clients may "
    "be trusted"
)
MAX_REGIONS = 1024
MAX_NAME = 1024
# Input bytes that requests in flight have copied out of shared memory, all together.
MAX_COPIED_BYTES = 1 << 30


@dataclass(slots=True, eq=False)
class Region:
    """Bytes `offset` to `offset + byte_size` of the open file `descriptor`; `leaving` once it is to go after its last use."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int
    uses: int = 0
    leaving: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """The part of a region that a tensor of a request lies in, or goes to."""

    region: Region
    start: int
    byte_size: int
    copied: bool

    def read(self) -> bytes:
        """A copy of the contents; the client may change them meanwhile."""
        parts: list[bytes] = []
        done = 0
        while done < self.byte_size:
            parts.append(os.pread(self.region.descriptor, self.byte_size - done, self.start + done))
            if not parts[-1]:
                raise SharedMemoryFailure(
                    f"Invalid shared memory region: '{self.region.name}' was registered with {self.region.byte_size} bytes at "
                    f"offset {self.region.offset}, but its file has become shorter",
                    region=self.region.name,
                )
            done += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: bytes) -> None:
        """Puts an output there, which fits."""
        if os.fstat(self.region.descriptor).st_size < self.start + len(data):
            raise SharedMemoryFailure(
                f"Invalid shared memory region: '{self.region.name}' has become shorter than the {len(data)} bytes to write",
                region=self.region.name,
            )
        done = 0
        while done < len(data):
            done += os.pwrite(self.region.descriptor, memoryview(data)[done:], self.start + done)


class SharedMemory:
    """The regions that are registered, by name; used on the event loop."""

    def __init__(self, max_copied_bytes: int = MAX_COPIED_BYTES) -> None:
        self._regions: dict[str, Region] = {}
        self._max_copied_bytes = max_copied_bytes
        self._copied_bytes = 0

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens the shared memory object `key` and makes a part of it known under a name."""
        if not name or len(name) > MAX_NAME:
            raise InvalidArgument(
                f"failed to register shared memory region: the name has {len(name)} characters, expected 1 to {MAX_NAME}"
            )
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager; unregister it first", region=name)
        if len(self._regions) >= MAX_REGIONS:
            raise Overloaded(f"{len(self._regions)} shared memory regions are registered, at most {MAX_REGIONS} may be")
        file = key.lstrip("/")
        if not file or "/" in file or "\0" in file or file in (".", "..") or len(os.fsencode(file)) > 255:
            raise InvalidArgument(
                f"cannot register shared memory region '{name}' - invalid shm key '{key[:MAX_NAME]}': expected a name of 1 to "
                "255 bytes without '/', after a leading '/'"
            )
        try:
            descriptor = os.open(DIRECTORY / file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SharedMemoryFailure(
                f"Unable to open shared memory region: '{key}': {error.strerror}", region=name
            ) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(
                    f"failed to register shared memory region '{name}': invalid args: '{key}' is no file"
                )
            if not byte_size or offset + byte_size > status.st_size:
                raise InvalidArgument(
                    f"failed to register shared memory region '{name}': invalid args: offset {offset} and byte size "
                    f"{byte_size} must lie within the {status.st_size} bytes of '{key}', and the byte size be > 0"
                )
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str) -> None:
        """Forgets a region, all of them for the empty name; one that is in use goes when its last request ends."""
        for region in self.regions() if not name else filter(None, [self._regions.get(name)]):
            region.leaving = True
            self._drop(region)

    def regions(self, name: str = "") -> list[Region]:
        """All regions, or the one of that name."""
        if not name:
            return list(self._regions.values())
        if name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name[:MAX_NAME]}'")
        return [self._regions[name]]

    def use(self, place: Place, *, copied: bool) -> Use:
        """The part of a region that a tensor names, in use until `release`; `copied` if it is to be read."""
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{place.region[:MAX_NAME]}'; register it first")
        if place.offset >= region.byte_size:
            raise InvalidArgument(
                f"Invalid offset for shared memory region: '{region.name}'; it has {region.byte_size} bytes, got {place.offset}"
            )
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidArgument(
                f"Invalid offset + byte size for shared memory region: '{region.name}'; it has {region.byte_size} bytes, got "
                f"{place.offset} + {place.byte_size}"
            )
        if copied:
            if place.byte_size > self._max_copied_bytes:
                raise InvalidArgument(
                    f"an input has {place.byte_size} bytes in shared memory region '{region.name}', at most "
                    f"{self._max_copied_bytes} are taken"
                )
            others = self._copied_bytes
            if others + place.byte_size > self._max_copied_bytes:
                raise Overloaded(
                    f"requests in flight hold {others} bytes from shared memory, at most {self._max_copied_bytes} may be held; "
                    "try again later"
                )
            self._copied_bytes += place.byte_size
        region.uses += 1
        return Use(region, region.offset + place.offset, place.byte_size, copied)

    def release(self, use: Use) -> None:
        """Ends a use."""
        use.region.uses -= 1
        if use.copied:
            self._copied_bytes -= use.byte_size
        self._drop(use.region)

    def _drop(self, region: Region) -> None:
        if region.leaving and not region.uses:
            del self._regions[region.name]
            os.close(region.descriptor)


class Uses:
    """What one request uses of shared memory, until `release`; `memory` None where clients may not use any."""

    def __init__(self, memory: SharedMemory | None) -> None:
        self._memory = memory
        self._uses: list[Use] = []

    def use(self, place: Place, *, copied: bool = False) -> Use:
        """As SharedMemory's."""
        use = allowed(self._memory).use(place, copied=copied)
        self._uses.append(use)
        return use

    def release(self) -> None:
        """Ends them all."""
        for use in self._uses:
            allowed(self._memory).release(use)


def allowed(memory: SharedMemory | None) -> SharedMemory:
    """The shared memory, or an error that says how to allow it."""
    if memory is None:
        raise Unimplemented(DISABLED)
    return memory
