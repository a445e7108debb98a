"""Frames: every message comes back as it went, and whatever is not of this protocol is refused."""

import random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgisd import wire
from qgisd.datafiles import Versions
from qgisd.errors import WireError
from qgisd.words import Mode, PluginState
from qgisd.worker import snapshot

#: Text as it can be in a URL, a header or a message: no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NUMBER = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
BAD_LAYER = st.builds(wire.BadLayer, TEXT, TEXT, TEXT)
LAYER = st.builds(wire.Layer, TEXT, TEXT, TEXT, st.booleans(), st.none() | FLOAT)
PLUGIN = st.builds(wire.Plugin, TEXT, TEXT, st.sampled_from(PluginState), TEXT, TEXT)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBER,
    float: FLOAT,
    str: TEXT,
    bool: st.booleans(),
    str | None: st.none() | TEXT,
    Mode: st.sampled_from(Mode),
    list[str]: st.lists(TEXT, max_size=4),
    Versions: st.dictionaries(TEXT, st.none() | st.tuples(NUMBER, NUMBER, NUMBER), max_size=4),
    wire.Headers: st.lists(st.tuples(TEXT, TEXT), max_size=4),
    list[wire.BadLayer]: st.lists(BAD_LAYER, max_size=4),
    list[wire.Layer]: st.lists(LAYER, max_size=4),
    list[wire.Plugin]: st.lists(PLUGIN, max_size=4),
    wire.WarmUp: st.builds(wire.WarmUp, TEXT, TEXT, TEXT),
}
DIRECTIONS: list[tuple[Any, Any]] = [
    (wire.ToWorker, wire.decode_to_worker),
    (wire.FromWorker, wire.decode_from_worker),
    (wire.ToForker, wire.decode_to_forker),
    (wire.FromForker, wire.decode_from_forker),
]
KINDS = [(kind, decode) for union, decode in DIRECTIONS for kind in get_args(union)]
NAMES = [kind.__name__ for kind, _ in KINDS]


def messages(kind: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    """Any message of one kind, built from the types of its fields."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: FIELDS[field.type] for field in fields})


ANY = st.one_of([messages(kind) for kind, _ in KINDS])


@pytest.mark.parametrize(("kind", "decode"), KINDS, ids=NAMES)
def test_every_message_comes_back_as_it_went(kind: type[wire.Message], decode: Any) -> None:
    @given(messages(kind))
    def round_trip(message: wire.Message) -> None:
        assert decode(wire.encode(message)) == message

    round_trip()


def test_every_message_of_the_module_has_a_direction() -> None:
    named = {
        value
        for value in vars(wire).values()
        if isinstance(value, type) and issubclass(value, wire.Message) and value is not wire.Message
    }
    assert named == {kind for kind, _ in KINDS}


@pytest.mark.parametrize(("kind", "decode"), KINDS, ids=NAMES)
def test_a_message_is_refused_in_every_other_direction(
    kind: type[wire.Message], decode: Any
) -> None:
    fields = msgspec.structs.fields(kind)
    plain: dict[Any, Any] = {int: 1, float: 1.0, str: "x", bool: True, Mode: Mode.FORKED}
    plain |= {str | None: None, wire.WarmUp: wire.WarmUp(), Versions: {}}
    message = kind(**{field.name: plain.get(field.type, []) for field in fields})
    assert decode(wire.encode(message)) == message
    for other, refusing in DIRECTIONS:
        if kind not in get_args(other):
            with pytest.raises(WireError):
                refusing(wire.encode(message))


@given(ANY, st.data())
def test_a_truncated_message_is_refused(message: wire.Message, data: st.DataObject) -> None:
    whole = wire.encode(message)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for _, decode in DIRECTIONS:
        with pytest.raises(WireError):
            decode(part)


@given(ANY)
def test_bytes_after_a_message_are_refused(message: wire.Message) -> None:
    for _, decode in DIRECTIONS:
        with pytest.raises(WireError):
            decode(wire.encode(message) + b"\0")


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_is_a_message(data: bytes) -> None:
    for _, decode in DIRECTIONS:
        for header in (data, bytes([wire.VERSION]) + data):
            try:
                message = decode(header)
            except WireError:
                continue
            assert isinstance(message, wire.Message)


@given(ANY, st.integers(0, 2**32))
def test_a_message_with_a_flipped_bit_is_refused_or_is_a_message(
    message: wire.Message, seed: int
) -> None:
    header = bytearray(wire.encode(message))
    dice = random.Random(seed)
    header[dice.randrange(len(header))] ^= 1 << dice.randrange(8)
    for _, decode in DIRECTIONS:
        try:
            assert isinstance(decode(bytes(header)), wire.Message)
        except WireError as refusal:
            assert str(refusal)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_and_named(version: int) -> None:
    header = bytes([version]) + wire.encode(wire.Pong(1))[1:]
    with pytest.raises(WireError, match="version"):
        wire.decode_from_worker(header)


def test_an_oversize_header_is_refused_before_it_is_decoded() -> None:
    header = wire.encode(wire.Broken(1, "x" * wire.MAX_HEADER))
    with pytest.raises(WireError, match="bytes; at most"):
        wire.decode_from_worker(header)
    header = wire.encode(wire.Failed("x" * wire.MAX_CONTROL))
    with pytest.raises(WireError, match="bytes; at most"):
        wire.decode_from_forker(header)


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\x01"], ids=["arrays", "maps"])
def test_deep_nesting_is_refused(nest: bytes) -> None:
    deep = nest * 50_000 + b"\x01"
    end = b"\x94" + msgspec.msgpack.encode("End") + b"\x01" + msgspec.msgpack.encode(1.0)
    for header in (b"\x01" + deep, b"\x01" + end + deep):
        with pytest.raises(WireError):
            wire.decode_from_worker(header)


@given(TEXT, st.integers(0, 2**40))
def test_tokens_name_their_process(project: str, number: int) -> None:
    token = wire.snapshot_token(project, number)
    assert wire.parse_snapshot_token(token) == (number, project)
    assert wire.parse_worker_token(wire.worker_token(number)) == number


def test_text_that_is_no_utf8_does_not_stop_a_message() -> None:
    header = wire.encode(wire.Failed("cannot open /srv/stra\udcdfe.gpkg"))
    message = wire.decode_from_forker(header)
    assert isinstance(message, wire.Failed) and message.message.startswith("cannot open /srv/stra")


def test_layers_of_the_longest_names_fit_into_a_control_message() -> None:
    wide = "\U0001f5fa" * snapshot._MOST_TEXT
    layer = wire.Layer(wide, wide, wide[:40], True, 1.0)
    message = wire.Layers([layer] * snapshot._LAYERS_AT_ONCE)
    assert len(wire.encode(message)) < wire.MAX_CONTROL


def test_what_is_said_of_bad_layers_fits_one_message() -> None:
    long = "層" * 10_000
    bad = snapshot.short([wire.BadLayer(long, "postgres", long)] * 1000)
    why = long[:500]  # as the snapshot cuts it
    warmup = wire.WarmUp("map", why, why)
    message = wire.Loaded(Mode.FORKED, why, 1000, bad, 1.0, [], warmup)
    assert len(bad) == 100
    assert len(wire.encode(message)) < wire.MAX_CONTROL
