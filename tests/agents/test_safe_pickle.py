"""States of environments are read without calling what they name, and objects come back as they were."""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import importlib
import os
import pickle
import pickletools
import random
import re
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from natgrad_apps.agents import safe_pickle

CALLS: list[str] = []
"""What code of the classes below has run."""

RECONSTRUCT: Any = np.zeros(1, dtype=object).__reduce__()[0]
"""numpy's function for arrays of objects, which is in another module before numpy 2."""

PACKAGES = {"tests", "gymnasium", "natgrad_apps", "stable_baselines3"}


class Point(NamedTuple):
    x: int
    y: Any


class Colour(enum.Enum):
    RED = "r"
    BLUE = (1, [2])


class Order(enum.IntEnum):
    FIRST = 1


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Card:
    suit: str
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    left: int
    right: Any


class Slots:
    __slots__ = ("__hidden", "a", "b")

    def __init__(self) -> None:
        self.a, self.__hidden = 1, 2

    def hidden(self) -> int:
        return self.__hidden


class Mixed(Slots):
    def __init__(self) -> None:
        super().__init__()
        self.c = 3


class Meters(int):
    unit: str


class Bag(set[int]):
    pass


class Ring(deque[int]):
    label: str


class Grid(dict[str, int]):
    def __setitem__(self, key: str, value: int) -> None:
        CALLS.append("__setitem__")
        super().__setitem__(key, value)


class Outer:
    class Inner:
        pass


class Constructed:
    def __init__(self, *arguments: Any) -> None:
        CALLS.append("__init__")


class Allocated:
    def __new__(cls, *arguments: Any) -> Allocated:
        CALLS.append("__new__")
        return super().__new__(cls)


class Restored:
    def __setstate__(self, state: Any) -> None:
        CALLS.append("__setstate__")


class Ended:
    def __del__(self) -> None:
        CALLS.append("__del__")


class Hashed:
    def __hash__(self) -> int:
        CALLS.append("__hash__")
        return 0


class Compared(tuple[Any, ...]):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        CALLS.append("__eq__")
        return True

    __hash__ = tuple.__hash__


class Indexed:
    def __index__(self) -> int:
        CALLS.append("__index__")
        return 3


class Listening:
    """Attributes of these names are set past these methods."""

    def __getattr__(self, name: str) -> Any:
        CALLS.append("__getattr__")
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        CALLS.append("__setattr__")

    def extend(self, items: Any) -> None:
        CALLS.append("extend")

    append = add = update = extend


def function() -> None:
    CALLS.append("function")


@pytest.fixture(autouse=True)
def calls() -> list[str]:
    CALLS.clear()
    return CALLS


@dataclasses.dataclass
class Reduced:
    """Pickles as it is told."""

    parts: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def again(value: Any, **live: Any) -> Any:
    return safe_pickle.loads(safe_pickle.dumps(value, live), PACKAGES, live)


def code(value: Any) -> bytes:
    """The opcodes that push a value."""
    return re.sub(rb"^\x80\x05(\x95.{8})?", b"", pickle.dumps(value, protocol=5)[:-1], flags=re.DOTALL)


def craft(*parts: Any) -> bytes:
    """A pickle from opcodes and values."""
    return b"\x80\x05" + b"".join(part if isinstance(part, bytes) else code(part) for part in parts) + b"."


def build(kind: Any, arguments: tuple[Any, ...] = (), *more: Any) -> bytes:
    """A pickle of an instance, by ``__new__``, and more."""
    return craft(kind, arguments, pickle.NEWOBJ, *more)


def refuse(value: Any, match: str | None = None) -> None:
    """Refused when it is read, by whatever pickler it was written."""
    data = value if isinstance(value, bytes) else pickle.dumps(value, protocol=5)
    CALLS.clear()
    with pytest.raises(pickle.UnpicklingError, match=match):
        safe_pickle.loads(data, PACKAGES, {})
    assert not CALLS


def test_objects_come_back_as_they_were(calls: list[str]) -> None:
    factory: defaultdict[str, list[int]] = defaultdict(list)
    factory["a"].append(1)
    value = {
        "point": Point(1, [2]),
        "enumerations": (Colour.RED, Colour.BLUE, Order.FIRST, Bits.B),
        "keys": {Point(0, 0), Colour.RED, Order.FIRST, (1, "a"), np.int64(3), None, frozenset({2})},
        "cards": [Card("spades", Colour.BLUE), Frozen(1, [2]), Frozen(1, [2])],
        "factory": factory,
        "containers": (deque([1, 2], maxlen=2), OrderedDict(b=1, a=2), Counter("aab"), {1, 2}, frozenset({3}), slice(1, 2), range(3), 1j),
        "classes": (Card, Outer.Inner, list, np.float32),
        "bytes": (b"1", bytearray(b"2")),
    }
    back = again(value)
    assert back == value
    assert back["containers"][0].maxlen == 2
    assert list(back["containers"][1]) == ["b", "a"]
    assert back["enumerations"][0] is Colour.RED
    assert back["factory"]["new"] == []
    assert not calls


def test_attributes_of_subclasses_survive(calls: list[str]) -> None:
    length, ring, bag, grid = Meters(5), Ring([1, 2], 3), Bag({1}), Grid(a=1)
    length.unit, ring.label, bag.note, grid.note = "m", "r", [1], [2]  # type: ignore[attr-defined]
    slots, mixed, inner = Slots(), Mixed(), Outer.Inner()
    values = again([length, ring, bag, grid, slots, mixed, inner])
    assert values[:4] == [length, ring, bag, grid]
    assert [type(value) for value in values] == [Meters, Ring, Bag, Grid, Slots, Mixed, Outer.Inner]
    assert (values[0].unit, values[1].label, values[1].maxlen, values[2].note, values[3].note) == ("m", "r", 3, [1], [2])
    assert (values[4].a, values[4].hidden(), values[5].a, values[5].hidden(), values[5].c) == (1, 2, 1, 2, 3)
    assert not hasattr(values[4], "b")
    assert not calls


def test_cycles_and_shared_objects_survive() -> None:
    card = Card("hearts")
    card.back = [card, (card,)]  # type: ignore[attr-defined]
    first, second = again((card, card))
    assert first is second
    assert first.back[0] is first
    assert first.back[1][0] is first


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generators_go_on(kind: Callable[[int], Any]) -> None:
    generator = np.random.Generator(kind(3))
    generator.normal(size=3)
    shared, other = again([generator, {"again": generator}])
    assert other["again"] is shared
    np.testing.assert_array_equal(shared.normal(size=5), generator.normal(size=5))
    if hasattr(generator, "spawn"):  # numpy 1.25
        assert shared.spawn(1)[0].integers(1000) == generator.spawn(1)[0].integers(1000)


def test_older_generators_go_on() -> None:
    legacy, python = np.random.RandomState(2), random.Random(4)
    legacy.normal(), python.gauss(0, 1)
    one, two = again((legacy, python))
    assert (one.normal(), two.gauss(0, 1), two.random()) == (legacy.normal(), python.gauss(0, 1), python.random())


def test_arrays_come_back_and_views_stay_views() -> None:
    objects = np.array([Card("a"), None, [1]], dtype=object)
    plain = [
        np.zeros((0, 3)),
        np.array(3.0),
        np.arange(6).reshape(2, 3).T,
        np.array(["ab"]),
        np.array(["2024-01-01"], dtype="M8[D]"),
        np.float32(2),
    ]
    back, numbers = again((objects, plain))
    assert (back[0], back[2]) == (Card("a"), [1])
    for left, right in zip(plain, numbers, strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    board = np.zeros((4, 4))
    rows = np.eye(3)
    state = again({"flat": board.ravel(), "inside": board[1:-1, ::-2], "board": board, "rows": list(rows), "x": rows[:, 0]})
    state = again(state)  # a state of a resumed environment
    state["board"][:] = np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(state["flat"], np.arange(16))
    np.testing.assert_array_equal(state["inside"], np.arange(16).reshape(4, 4)[1:-1, ::-2])
    state["rows"][1][:] = 7
    np.testing.assert_array_equal(state["x"], [1, 7, 0])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2,)),
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.Text(5),
        spaces.Dict(a=spaces.Discrete(9), b=spaces.Tuple((spaces.Box(0, 1), spaces.Discrete(9)))),
        spaces.Sequence(spaces.Discrete(9)),
        spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
        spaces.OneOf([spaces.Discrete(9), spaces.Box(0, 1)]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_go_on_sampling(space: gym.Space[Any]) -> None:
    space.seed(3)
    space.sample()
    other = again(space)
    assert type(other) is type(space)
    assert other == space
    for _ in range(3):
        assert repr(other.sample()) == repr(space.sample())


def test_live_objects_are_not_saved() -> None:
    part, other = Restored(), Restored()
    data = safe_pickle.dumps({"back": [part]}, {"part": part})
    assert safe_pickle.loads(data, PACKAGES, {"part": other})["back"][0] is other
    with pytest.raises(pickle.UnpicklingError, match="no part 'part'"):
        safe_pickle.loads(data, PACKAGES, {"": other})


@pytest.mark.parametrize(
    "change",
    [
        ("a", 1, pickle.SETITEM),
        (pickle.MARK, "a", 1, pickle.SETITEMS),
        (1, pickle.APPEND),
        (pickle.MARK, 1, pickle.APPENDS),
        ({"a": 1}, pickle.BUILD),
    ],
)
def test_live_objects_are_not_changed(change: tuple[Any, ...]) -> None:
    parts: list[Any] = [{}, [], Card("a"), np.zeros(1)]
    for live in parts:
        before = repr(live)
        with pytest.raises(pickle.UnpicklingError):
            safe_pickle.loads(craft("part", pickle.BINPERSID, *change), PACKAGES, {"part": live})
        assert repr(live) == before


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (Reduced((os.system, ("true",))), "neither plain data nor a class of the environment"),
        (eval, "neither plain data"),
        (function, "neither plain data"),
        (Reduced((getattr, (Card("a"), "suit"))), "neither plain data"),
        (Reduced((Constructed, ("argument",))), "cannot be called"),
        (Reduced((Constructed, ())), "cannot be called"),
        (build(Allocated), "__new__ of its own"),
        (build(Constructed, (1,)), "__new__ of its own"),
        (build(Point, (1,)), "not built from its value"),
        (build(list, ([1],)), "__new__ of its own"),
        (build(Colour, ("r",)), "without calling it"),
        (build(type, ("name", (), {})), "neither plain data"),
        (build(Card, (), {"__eq__": Constructed}, pickle.BUILD), "hide its methods"),
        (build(Card, (), [1], pickle.BUILD), "no dictionary"),
        (build(Slots, (), (None, {"hidden": Constructed}), pickle.BUILD), "no slot"),
        (build(Card, (), 1, pickle.APPEND), "items for a Card"),
        (build(Listening, (), pickle.MARK, 1, 2, pickle.APPENDS), "items for a Listening"),
        (build(Listening, (), 1, 2, pickle.SETITEM), "items for a Listening"),
        (build(Listening, (), pickle.MARK, 1, pickle.ADDITEMS), "items for a Listening"),
        (craft(Card, {"suit": 1}, pickle.BUILD), "takes no state"),
        (craft(Card, (None, {"suit": 1}), pickle.BUILD), "takes no state"),
        (craft(Colour, ("RED",), pickle.REDUCE, {"suit": 1}, pickle.BUILD), "takes no state"),
        (craft(Card, (), {"suit": "a"}, pickle.NEWOBJ_EX), "not a state"),
        (Reduced((defaultdict, (Constructed,))), "cannot be called"),
        (Reduced((Colour, ("r",))), "without a name"),
        (Bits.A | Bits.B, None),
        (Reduced((range, (Indexed(),))), "no plain data"),
        (Reduced((range, (np.array([Indexed()], dtype=object),))), "no plain data"),
        (Reduced((np.random._pickle.__generator_ctor, ("PCG64", Constructed))), "no plain data"),  # type: ignore[attr-defined]
        (Reduced((np.random._pickle.__bit_generator_ctor, (Constructed,))), "no plain data"),  # type: ignore[attr-defined]
        (Reduced((random.Random, (), (3, Hashed(), None))), "no plain data"),
        ([Hashed.__new__(Hashed), {(1, Hashed())}], "cannot be a key"),
        ({Hashed(): 1}, "cannot be a key"),
        (frozenset({Compared([1])}), "cannot be a key"),
        (Counter([Hashed()]), "cannot be a key"),
        (ValueError("x"), "neither plain data"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", "O")]), "no plain data"),
    ],
)
def test_what_is_no_data_is_refused_and_does_not_run(value: Any, match: str | None) -> None:
    refuse(value, match)


def test_classes_that_act_on_their_own_are_refused() -> None:
    restored = Restored()
    restored.x = 1  # type: ignore[attr-defined]
    refuse(restored, "__setstate__ of its own")
    listening = Listening()
    vars(listening)["x"] = 1
    CALLS.clear()
    assert vars(again(listening)) == {"x": 1}
    assert "__setattr__" not in CALLS
    ended = Ended()
    data = pickle.dumps(ended, protocol=5)
    vars(ended).clear()
    refuse(data, "without calling it")


@pytest.mark.parametrize(
    ("module", "name", "match"),
    [
        ("stable_baselines3.common.vec_env.base_vec_env", "CloudpickleWrapper", "neither plain data"),
        ("stable_baselines3.common.logger", "CSVOutputFormat", "neither plain data"),
        ("natgrad_apps.agents.faults", "Guarded", "neither plain data"),
        ("gymnasium.vector.utils.misc", "CloudpickleWrapper", "__setstate__ of its own"),
        ("gymnasium.envs.registration", "make", "neither plain data"),
        ("gymnasium.core", "Any", "neither plain data"),
        ("gymnasium.core", "Env.__init__", "neither plain data"),
        ("gymnasium", "core.Env", "neither plain data"),
        ("gymnasium.never_imported", "Class", "neither plain data"),
        ("builtins", "eval", "neither plain data"),
        ("copyreg", "_reconstructor", "neither plain data"),
        ("functools", "partial", "neither plain data"),
    ],
)
def test_names(module: str, name: str, match: str) -> None:
    importlib.import_module("stable_baselines3.common.vec_env.base_vec_env")
    importlib.import_module("gymnasium.vector.utils.misc")
    refuse(craft(module, name, pickle.STACK_GLOBAL, (), pickle.NEWOBJ, 1, pickle.BUILD), match)


def test_a_constructor_of_sb3_is_not_called(tmp_path: Path) -> None:
    from stable_baselines3.common.logger import CSVOutputFormat

    victim = tmp_path / "victim"
    victim.write_text("precious")
    refuse(Reduced((CSVOutputFormat, (str(victim),))), "neither plain data")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "data",
    [
        f"c{__name__}\nConstructed\n(K\x01tR.".encode(),
        f"(i{__name__}\nConstructed\n.".encode(),
        f"(c{__name__}\nConstructed\nK\x01o.".encode(),
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x83\x01\x00.",
        b"\x80\x05\x97.",
        b"Ppart\n.",
        b"",
        b".",
        b"garbage",
    ],
    ids=["global", "inst", "obj", "ext1", "ext2", "buffer", "persistent", "empty", "stop", "garbage"],
)
def test_other_opcodes_are_refused(data: bytes) -> None:
    copyreg.add_extension(__name__, "Constructed", 1)
    try:
        refuse(data)
    finally:
        copyreg.remove_extension(__name__, "Constructed", 1)


def test_numbers_are_not_taken_for_pointers() -> None:
    """Memory that numpy would look at as objects could make it run anything."""
    address = struct.pack("<Q", 0x4141414141414141)
    copied = Reduced((np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)))  # flags of a number
    array = Reduced((RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), copied, False, address)))
    refuse(array, "no plain data")
    refuse(Reduced((np.ndarray, ((1,), np.dtype("O"), address, 0, (8,)))), "no plain data")
    refuse(Reduced((np.ndarray, ((1,), np.dtype("O"), np.zeros(1), 0, (8,)))), "no plain data")
    refuse(Reduced((np.ndarray, ((9,), np.dtype("f8"), np.zeros(1), 0, (8,)))), "not a state")
    refuse(Reduced((np.dtype, ("f8", False, False), (3, ">", None, None, None, -1, -1, 0))), "no plain data")
    assert np.dtype("f8").isnative


def test_memory_in_use_is_not_replaced() -> None:
    """A state for an array after another one has become a view of its memory, which numpy would free."""
    array = Reduced((RECONSTRUCT, (np.ndarray, (4,), b"b")))
    view = pickle.dumps(Reduced((np.ndarray, ((4,), np.dtype("i1"), array, 0, (1,)))), protocol=5)[:-1]
    size = sum(opcode.name == "MEMOIZE" for opcode, _, _ in pickletools.genops(view + b"."))
    for index in range(size - 1):  # one of them is the array, and the last one is the view
        with pytest.raises(pickle.UnpicklingError):
            safe_pickle.loads(view + pickle.BINGET + bytes([index]) + code((1, (4,), np.dtype("i1"), False, b"abcd")) + b"b.", PACKAGES, {})


def test_a_simulator_needs_a_state() -> None:
    mujoco = pytest.importorskip("mujoco")
    refuse(build(mujoco.MjData), "without a state")
    refuse(Reduced((mujoco.MjModel, ())), "cannot be called")
