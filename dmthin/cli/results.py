"""What a verb that has made or changed a volume gives back."""

from typing import TYPE_CHECKING

from dmthin.cli.call import Call
from dmthin.cli.fields import VOLUME_FIELDS, as_json

if TYPE_CHECKING:
    from dmthin.store.state.model import Volume
    from dmthin.store.store import Store


def tell_volume(call: Call, store: "Store", volume: "Volume", words: str) -> None:
    """Say what was done, or with --json give the volume as it is now."""
    call.output.say(words)
    if call.output.as_json:
        from dmthin.store import report

        call.output.document({"volume": as_json(report.volume(store, volume.name), VOLUME_FIELDS)})
