"""All frames between the daemon and its processes. Pure: bytes in, messages out, no sockets.

Workers speak over ZeroMQ, one ROUTER in the daemon and a DEALER in each worker:

    daemon ─▶ worker   [identity] [header] [body]      Request, Credit, Ping, Stop
    worker ─▶ daemon   [identity] [header] [body]      Ready, Head, Chunk, End, Broken, Pong

    one answer   Head(whole)                           all of a small one in one message
                 Head  Chunk*  End                     a large one, as it is made
                 Head  Chunk*  Broken                  one that failed after its head: abort

Zygotes and snapshots speak over a SOCK_SEQPACKET socketpair, descriptors by SCM_RIGHTS:

    daemon ─▶ forker   ForkSnapshot, ForkWorker
    forker ─▶ daemon   Starting, ZygoteReady, Loading, Layers*, DataFiles*, Loaded, Failed,
                       Forked + pidfd, Exited

A header is one version byte and a MessagePack array whose first element names the kind.
The body is a frame of its own, so that it is never copied into a header. Nothing is pickled.
"""

from typing import Any, TypeVar

import msgspec

from qgisd.datafiles import Versions
from qgisd.errors import WireError
from qgisd.words import Mode, PluginState

VERSION = 1
#: Bytes of one header; a URL and all headers of a request fit many times.
MAX_HEADER = 4 << 20
#: Bytes of one control packet: below the kernel's default send buffer for a socketpair.
MAX_CONTROL = 128 << 10

#: Product in the User-Agent of what workers fetch. Its version is the depth of nesting; behind it
#: stands what only the daemon and its workers know, as anybody may send such a header.
DEPTH_AGENT = "qgisd-depth"

#: Below a pool's HOME: folders that workers made for themselves, named by their pids.
WORKER_FOLDERS = "workers"

Headers = list[tuple[str, str]]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the tag is the class name."""


# daemon to worker


class Request(Message, frozen=True):
    """Work. The body of a POST is the next frame; `url` is absolute, as the client sees it.

    `writes` says that it may change data.
    """

    id: int
    method: str
    url: str
    headers: Headers
    writes: bool = False


class Credit(Message, frozen=True):
    """The daemon has put away `size` bytes of chunks of request `id`; so many more may come."""

    id: int
    size: int


class Ping(Message, frozen=True):
    """Asked of idle workers only: a busy one holds the GIL and has a deadline instead."""

    number: int


class Stop(Message, frozen=True):
    """End now; sent to a worker that has no request."""


# worker to daemon


class Ready(Message, frozen=True):
    """The worker waits for its first request.

    stack_fd: number of its descriptor into which SIGUSR1 writes its Python stack.
    """

    pid: int
    stack_fd: int


class Head(Message, frozen=True):
    """Status and headers, and the first bytes of the body as the next frame.

    `whole` says that these are all bytes and nothing more comes for this request.
    `busy_ms` is the time since the request was taken up; `grown`, if these are all, as in End.
    """

    id: int
    status: int
    headers: Headers
    whole: bool
    busy_ms: float
    grown: int = 0


class Chunk(Message, frozen=True):
    """More of the body, in the next frame."""

    id: int


class End(Message, frozen=True):
    """The body is complete. `grown`: bytes of memory taken since the worker came up."""

    id: int
    busy_ms: float
    grown: int = 0


class Broken(Message, frozen=True):
    """The answer failed after its head was out; what was sent must not look whole."""

    id: int
    message: str


class Pong(Message, frozen=True):
    """Answer to a Ping."""

    number: int


# daemon to zygote or snapshot


class ForkSnapshot(Message, frozen=True):
    """Fork a process that loads `path`; its control socket comes along as a descriptor.

    background: nobody waits for it, as an older generation serves.
    """

    project: str
    generation: int
    path: str
    background: bool = False


class ForkWorker(Message, frozen=True):
    """Fork a worker that connects to `endpoint` under `identity`.

    `path` is set where the worker must load the project itself (Mode.LOADED, from the zygote).
    """

    worker: int
    endpoint: str
    identity: str
    path: str | None


# zygote or snapshot to daemon


class Starting(Message, frozen=True):
    """The zygote begins with `what`: should it end there, that is why."""

    what: str


class Plugin(msgspec.Struct, frozen=True, array_like=True):
    """A server plugin: `error` is why it failed, `note` what is special about it."""

    name: str
    version: str
    state: PluginState
    error: str = ""
    note: str = ""


class ZygoteReady(Message, frozen=True):
    """QGIS is up. `qgis` is its version, `services` what it serves, `api_root` the path of its
    OGC API Features."""

    qgis: str
    api_root: str
    services: list[str]
    plugins: list[Plugin]
    notes: list[str]


class Loading(Message, frozen=True):
    """The fork came up and has begun to load: it did not catch a lock on its way."""


class DataFiles(Message, frozen=True):
    """Files that layers of the project read. Before Loaded, in as many messages as it takes."""

    files: Versions


class BadLayer(msgspec.Struct, frozen=True, array_like=True):
    """A layer that did not load, and what its provider says."""

    name: str
    provider: str
    message: str


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """A layer of a project. `load_ms` is None if nobody measured."""

    id: str
    name: str
    provider: str
    valid: bool
    load_ms: float | None


class Layers(Message, frozen=True):
    """Some layers of what is being loaded; as many of these messages as it takes, then Loaded."""

    layers: list[Layer]


class WarmUp(msgspec.Struct, frozen=True, array_like=True):
    """How far a snapshot was warmed up before it is forked.

    level: "off", "capabilities" or "map". `detail` says what was done, `why` what kept it from
    more of what was asked for ("": nothing did).
    """

    level: str = "off"
    detail: str = ""
    why: str = ""


class Loaded(Message, frozen=True):
    """The project is there. In Mode.LOADED the snapshot ends after this; `why` says what held it.

    `notes` are what the fork rules met and did not know, for the log.
    """

    mode: Mode
    why: str
    layers: int
    bad_layers: list[BadLayer]
    load_ms: float
    notes: list[str]
    warmup: WarmUp


class Failed(Message, frozen=True):
    """The zygote could not start, or the snapshot could not load."""

    message: str


class Forked(Message, frozen=True):
    """A child was forked; its pidfd comes along. `token` names it: see `snapshot_token`."""

    token: str
    pid: int


class Exited(Message, frozen=True):
    """A child ended. `code` is its exit code, or minus the signal."""

    token: str
    pid: int
    code: int


ToWorker = Request | Credit | Ping | Stop
FromWorker = Ready | Head | Chunk | End | Broken | Pong
ToForker = ForkSnapshot | ForkWorker
FromForker = (
    Starting | ZygoteReady | Loading | Layers | DataFiles | Loaded | Failed | Forked | Exited
)

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_to_forker: msgspec.msgpack.Decoder[ToForker] = msgspec.msgpack.Decoder(ToForker)
_from_forker: msgspec.msgpack.Decoder[FromForker] = msgspec.msgpack.Decoder(FromForker)
_VERSION_BYTE = bytes([VERSION])


def encode(message: Message) -> bytes:
    """One header. Raises nothing: all messages are ours."""
    try:
        return _VERSION_BYTE + _encoder.encode(message)
    except UnicodeEncodeError:
        # A file name that is not UTF-8, in some error's text.
        return _VERSION_BYTE + _encoder.encode(_printable(message))


def _printable(content: Any) -> Any:
    """`content` with what UTF-8 cannot hold replaced by question marks."""
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode()
    if isinstance(content, msgspec.Struct):
        fields = (getattr(content, name) for name in content.__struct_fields__)
        return type(content)(*map(_printable, fields))
    if isinstance(content, (list, tuple)):
        return type(content)(map(_printable, content))
    if isinstance(content, dict):
        return {_printable(key): _printable(value) for key, value in content.items()}
    return content


def _decode(decoder: "msgspec.msgpack.Decoder[Any]", header: bytes, limit: int) -> Any:
    if len(header) > limit:
        raise WireError(f"a header of {len(header)} bytes; at most {limit} are taken")
    if header[:1] != _VERSION_BYTE:
        raise WireError(f"a frame of version {header[:1]!r}; this is version {VERSION}")
    try:
        return decoder.decode(memoryview(header)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a frame that does not decode: {error}") from None


def decode_to_worker(header: bytes) -> ToWorker:
    """What a worker received. Raises WireError."""
    message: ToWorker = _decode(_to_worker, header, MAX_HEADER)
    return message


def decode_from_worker(header: bytes) -> FromWorker:
    """What a worker sent. Raises WireError."""
    message: FromWorker = _decode(_from_worker, header, MAX_HEADER)
    return message


def decode_to_forker(header: bytes) -> ToForker:
    """What a zygote or snapshot received. Raises WireError."""
    message: ToForker = _decode(_to_forker, header, MAX_CONTROL)
    return message


def decode_from_forker(header: bytes) -> FromForker:
    """What a zygote or snapshot sent. Raises WireError."""
    message: FromForker = _decode(_from_forker, header, MAX_CONTROL)
    return message


def snapshot_token(project: str, generation: int) -> str:
    """The name of a snapshot process in Forked and Exited."""
    return f"snapshot {generation} {project}"


def parse_snapshot_token(token: str) -> tuple[int, str]:
    """Generation and project of a snapshot's name."""
    _, generation, project = token.split(" ", 2)
    return int(generation), project


def rehearsal_token(generation: int) -> str:
    """The name of a process in which a snapshot tries what it means to do."""
    return f"rehearsal {generation}"


def is_rehearsal_token(token: str) -> bool:
    """Whether it names such a process."""
    return token.startswith("rehearsal ")


def worker_token(worker: int) -> str:
    """The name of a worker process in Forked and Exited."""
    return f"worker {worker}"


def parse_worker_token(token: str) -> int:
    """The number in a worker's name."""
    return int(token.removeprefix("worker "))
