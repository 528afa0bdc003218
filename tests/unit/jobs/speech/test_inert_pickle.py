"""Pickles of other people: what is read of them, and that nothing in them runs."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.speech.inert_pickle import Global, Record, array_of, class_of, read_inert

MARKER = "poisoned"
SYSTEM = f"cposix\nsystem\n(S'touch {MARKER}'\ntR".encode()
MODEL = b"\x80\x02csklearn.cluster._kmeans\nKMeans\n)\x81"
CENTERS = b"X\x10\x00\x00\x00cluster_centers_"


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        """See pickle."""
        return self.call


def short(text: str) -> bytes:
    """A string of protocol 4."""
    return b"\x8c" + struct.pack("B", len(text)) + text.encode()


TOUCH = f"touch {MARKER}"
CODE = f"open({MARKER!r}, 'w')"
POISONS: dict[str, tuple[bytes, str]] = {
    "a command": (pickle.dumps(Calls(os.system, TOUCH)), "posix.system"),
    "a command of protocol 0": (pickle.dumps(Calls(os.system, TOUCH), 0), "posix.system"),
    "code": (pickle.dumps(Calls(eval, CODE)), "builtins.eval"),
    "code of Python 2": (f"c__builtin__\neval\n(S{CODE!r}\ntR.".encode(), "__builtin__.eval"),
    "a process": (b"csubprocess\nPopen\n(lS'touch'\ntR.", "subprocess.Popen"),
    "in centroids": (MODEL + b"}" + CENTERS + SYSTEM + b"sb.", "posix.system"),
    "among frames": (b"\x80\x04\x95" + struct.pack("<Q", 500) + SYSTEM + b".", "posix.system"),
    "thrown away": (SYSTEM + b"0" + MODEL + b"}b.", "posix.system"),
    "an instance of Python 2": (f"(S'{TOUCH}'\niposix\nsystem\n.".encode(), "posix.system"),
    "an object of Python 2": (f"(cposix\nsystem\nS'{TOUCH}'\no.".encode(), "posix.system"),
    "names by way of another module": (
        b"\x80\x04" + short("sklearn.cluster") + short("os.system") + b"\x93" + short(TOUCH)
        + b"\x85R.",
        "sklearn.cluster.os.system",
    ),
    "a name that hides in a line": (
        b"\x80\x04" + short("sklearn\nos") + short("system") + b"\x93.", "which no codebook"
    ),
    "getattr": (b"cbuiltins\ngetattr\n(S'x'\nS'y'\ntR.", "builtins.getattr"),
    "numpy that runs files": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
    "numpy that tests": (b"cnumpy.testing\nrundocs\n.", "numpy.testing.rundocs"),
    "a call of a result": (MODEL + b"(S'x'\ntR.", "calls what is no name"),
    "a call of a string": (b"S'os.system'\n(S'x'\ntR.", "calls what is no name"),
    "a name that is none": (b"\x80\x04K\x01K\x02\x93.", "no text"),
    "an id of its reader's": (b"Pevil\n.", "PERSID"),
    "an id on the stack": (MODEL + b"Q.", "BINPERSID"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a buffer that is elsewhere": (b"\x80\x05\x97.", "NEXT_BUFFER"),
}  # fmt: skip


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_by_name_and_does_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, says = POISONS[name]
    with pytest.raises(ValueError, match=says):
        read_inert(data)
    assert not list(tmp_path.iterdir())


def test_a_poison_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above are about would run by pickle's own reader."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(POISONS["a command"][0])
    assert (tmp_path / MARKER).exists()


def test_names_that_pass_make_nothing() -> None:
    called = read_inert(b"c_codecs\nencode\n(S'x'\nS'no such code'\ntR.")
    assert called.of == Global("_codecs", "encode")
    state = MODEL + b"}X\x0c\x00\x00\x00__setstate__K\x01sb."
    assert read_inert(state).state == {"__setstate__": 1}
    assert read_inert(MODEL + b"(K\x01K\x02tb.").state == (1, 2)
    built_twice = read_inert(b"\x80\x02csklearn\nX\n)\x81}b(I1\nlb.")
    assert isinstance(built_twice, Record)


def test_keys_that_are_no_strings_are_left_out() -> None:
    deep = b"(" * 100_000 + b"t" * 100_000
    assert read_inert(b"}" + deep + b"K\x01s.") == {}
    assert read_inert(b"}(K\x01K\x02S'a'\nK\x03u.") == {"a": 3}


@pytest.mark.parametrize("data", [b"", b".", b"garbage", b"\x80\x04", b"t.", b"h\x07.", b"(K\x01."])
def test_what_is_no_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (in pickletools' words)
        class_of(read_inert(data)) or array_of(read_inert(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read(protocol: int, dtype: str, order: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    read = array_of(read_inert(pickle.dumps(array, protocol)))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_objects_are_refused(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    harmless, poison = np.array([[{}]], object), np.array([Calls(os.system, TOUCH)], object)
    with pytest.raises(ValueError, match="no array of numbers"):
        array_of(read_inert(pickle.dumps(harmless, protocol)))
    with pytest.raises(ValueError, match=r"posix\.system"):
        read_inert(pickle.dumps(poison, protocol))
    assert not list(tmp_path.iterdir())


def wrapper(*, dtype: str = "f4", shape: tuple[int, ...] = (2,), order: str = "C") -> bytes:
    """The wrapper of an array as joblib writes it, without what follows."""
    return (
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
        + b"S'shape'\n(" + b"".join(b"I%d\n" % n for n in shape) + b"t"
        + b"S'dtype'\ncnumpy\ndtype\n(S'%s'\ntR" % dtype.encode()
        + b"S'order'\nS'%s'\nub" % order.encode()
    )  # fmt: skip


def test_an_array_after_its_wrapper_is_read() -> None:
    data = wrapper() + np.array([1, 2], "<f4").tobytes() + b"."
    np.testing.assert_array_equal(array_of(read_inert(data)), [1, 2])


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"dtype": "O"}, "array of type O"),
        ({"dtype": "O8"}, "array of type O8"),
        ({"dtype": "f4,O"}, "damaged"),
        ({"shape": (10**12,)}, "ends before"),
        ({"shape": (10**9, 10**9, 10**9)}, "ends before"),
        ({"shape": (-2,)}, "damaged"),
        ({"order": "X"}, "no array"),
    ],
)
def test_wrappers_that_lie_are_refused(about: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        array_of(read_inert(wrapper(**about) + bytes(8) + b"."))
