"""Every error is one line with a status of its own kind."""

from dmthin import errors
from dmthin.errors import DmthinError, Status


def all_errors() -> list[type[DmthinError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DmthinError)]


def test_the_hint_follows_the_message() -> None:
    error = errors.InUse("the volume web is in use", hint="stop it")
    assert str(error) == "the volume web is in use: stop it"
    assert str(errors.InUse("only this")) == "only this"


def test_exit_codes_are_distinct_and_leave_room_for_signals() -> None:
    codes = [status.exit_code for status in Status]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


def test_every_error_is_of_those_who_must_act() -> None:
    groups = (errors.UserError, errors.OperatorError, errors.RetryError)
    for kind in all_errors():
        assert kind is DmthinError or issubclass(kind, groups)
        assert kind.__doc__
