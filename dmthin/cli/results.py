"""The result of a verb that has created or changed a volume."""

from typing import TYPE_CHECKING

from dmthin.cli.call import Call
from dmthin.cli.fields import VOLUME_FIELDS, as_json
from dmthin.cli.owners import owners_of

if TYPE_CHECKING:
    from dmthin.store.state.model import Volume
    from dmthin.store.store import Store


def report_volume(call: Call, store: "Store", volume: "Volume", text: str, *, data: str = "") -> None:
    """Print what was done and its `data`, or with --json the volume in its new state.

    Raise NotFound if it was removed meanwhile, OutputLost.
    """
    content = {}
    if call.output.as_json:
        from dmthin.store import report

        view = report.volume(store, volume.name, owners=owners_of(store))
        content = {"volume": as_json(view, VOLUME_FIELDS)}
    call.output.changed(text, content, data=data)
