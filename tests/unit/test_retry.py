"""Trying again what is busy for a moment."""

import pytest

from dmthin.errors import InUse, NotFound
from dmthin.kernel import retry
from dmthin.kernel.retry import ATTEMPTS, retry_busy


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


class Device:
    """Something that fails with the given errors, one a call, and then gives the number of the call."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.calls


def test_what_is_busy_for_a_moment_succeeds(pauses: list[float]) -> None:
    assert retry_busy(Device()) == 1
    assert pauses == []
    assert retry_busy(Device(InUse("udev"), InUse("blkid"))) == 3
    assert pauses == [retry.PAUSE_SECONDS] * 2


def test_what_stays_busy_raises_its_last_error(pauses: list[float]) -> None:
    device = Device(*(InUse(str(number)) for number in range(1, 100)))
    with pytest.raises(InUse, match=f"^{ATTEMPTS}$"):
        retry_busy(device)
    assert (device.calls, len(pauses)) == (ATTEMPTS, ATTEMPTS - 1)
    with pytest.raises(InUse):
        retry_busy(device, attempts=1)
    assert device.calls == ATTEMPTS + 1


def test_waiting_ends_where_it_is_of_no_use(pauses: list[float]) -> None:
    device = Device(InUse("first"), InUse("second"), InUse("third"))
    with pytest.raises(InUse, match=r"^second$"):
        retry_busy(device, is_final=lambda: device.calls == 2)
    assert len(pauses) == 1


def test_no_other_error_is_tried_again(pauses: list[float]) -> None:
    device = Device(NotFound("gone"))
    with pytest.raises(NotFound):
        retry_busy(device)
    assert (device.calls, pauses) == (1, [])
