"""Rows of a device tensor. Here the device is the CPU, whose OrtValues share their memory in the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import DTypeLike

from valle2.engine.backends.ort import session
from valle2.engine.backends.ort.session import DeviceBuffer


def buffer_over(memory: np.ndarray[Any, Any]) -> DeviceBuffer:
    value = ort.OrtValue.ortvalue_from_numpy(memory)
    return DeviceBuffer(value, memory.dtype, slice(0, len(memory)))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float16, np.bool_])
def test_rows_are_written_and_read_alone(dtype: DTypeLike) -> None:
    memory = np.zeros((6, 3, 2), dtype)
    part = buffer_over(memory).rows(slice(1, 5)).rows(slice(1, 3))
    values = np.arange(1, 13).reshape(2, 3, 2).astype(dtype)
    part.write(values)
    assert np.array_equal(memory[2:4], values) and not memory[:2].any() and not memory[4:].any()
    found = part.read()
    assert found.dtype == dtype and np.array_equal(found, values)


def test_rows_pass_no_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a write nor a read of rows copies the whole tensor to the host."""
    passed: list[int] = []
    update, numpy = ort.OrtValue.update_inplace, ort.OrtValue.numpy

    def counted_update(value: Any, data: np.ndarray[Any, Any]) -> None:
        passed.append(data.nbytes)
        update(value, data)

    def counted_numpy(value: Any) -> np.ndarray[Any, Any]:
        passed.append(value.tensor_size_in_bytes())
        found: np.ndarray[Any, Any] = numpy(value)
        return found

    monkeypatch.setattr(ort.OrtValue, "update_inplace", counted_update)
    monkeypatch.setattr(ort.OrtValue, "numpy", counted_numpy)
    whole = buffer_over(np.zeros((64, 512), np.float32))
    row = whole.rows(slice(3, 4))
    row.write(np.ones((1, 512), np.float32))
    row.read()
    assert passed == [2048, 2048]
    whole.read()
    assert passed[-1] == 64 * 2048


def test_a_part_outlives_the_buffer_that_it_came_from() -> None:
    memory = np.zeros((4, 1000), np.int64)
    part = buffer_over(memory).rows(slice(2, 3))
    value = part.rows_value
    del part
    value.update_inplace(np.full((1, 1000), 7))
    assert memory[2].min() == 7 and memory.sum() == 7000


def test_without_shared_memory_the_values_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "shares_memory", lambda *_: False)
    memory = np.zeros((4, 2), np.int64)
    part = buffer_over(memory).rows(slice(1, 3))
    part.write(np.array([[1, 2], [3, 4]]))
    assert memory.tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    assert part.read().tolist() == [[1, 2], [3, 4]]
