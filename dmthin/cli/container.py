"""The verbs of one container: create, mount, unmount, resize, commit, remove."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmthin.cli.call import Call
from dmthin.cli.owners import meant, meant_to_remove
from dmthin.cli.results import report_volume
from dmthin.cli.sizes import human, parse_request

if TYPE_CHECKING:
    from dmthin.store.store import Store


def create(call: Call) -> None:
    """Create a container from an image; print its block device."""
    from dmthin.store.state.model import Kind

    name, size = call.arguments.name, call.volume_size()
    with call.store() as store:
        image = meant(store, call.arguments.image, Kind.IMAGE)
        if _planned(call, lambda plans: plans.container_create(store, image, name, size)):
            return
        if size is not None:
            call.confirm_size(store, name, store.containers.plan_create(image, name, size).size)
        made = store.containers.create(image, name, size=size)
        info = store.volumes.info(made)
        text = f"created {name}: {human(made.size)}, a snapshot of {call.arguments.image}"
        report_volume(call, store, made, text, data=f"{info.node}\n" if info else "")


def mount(call: Call) -> None:
    """Mount a container; print the mount point."""
    directory = Path(call.arguments.directory) if call.arguments.directory else None
    with call.store() as store:
        name = _container(call, store)
        if _planned(call, lambda plans: plans.container_mount(store, name, directory)):
            return
        place = store.containers.mount(name, directory)
        call.output.made = f"mounted {call.arguments.name} at {place}"
        if call.output.as_json:
            call.output.document({"mounted": str(place)})
        else:
            call.output.data(f"{place}\n")


def unmount(call: Call) -> None:
    """Unmount a container at all its mount points. Succeed if it is not mounted."""
    given, force = call.arguments.name, call.arguments.force
    with call.store() as store:
        name = _container(call, store)
        if _planned(call, lambda plans: plans.container_unmount(store, name, force=force)):
            return
        was_mounted = store.containers.unmount(name, force=force)
    text = f"unmounted {given}" if was_mounted else f"{given} was not mounted"
    call.output.changed(text, {"unmounted": was_mounted})


def resize(call: Call) -> None:
    """Extend a container and its file system."""
    from dmthin.store.state.model import Kind

    given = call.arguments.name
    request = parse_request(call.arguments.size, "size")
    with call.store() as store:
        name = _container(call, store)
        before = store.ledger.ready(name, Kind.CONTAINER).size
        size = request.resolve(before)
        if _planned(call, lambda plans: plans.container_resize(store, name, size)):
            return
        call.confirm_size(store, given, store.containers.plan_resize(name, size).size)
        now = store.containers.resize(name, size)
        same = f"{given} already has {human(now.size)}"
        grown = f"resized {given}: {human(before)} -> {human(now.size)}"
        report_volume(call, store, now, grown if now.size != before else same)


def commit(call: Call) -> None:
    """Create an image from a container's current contents."""
    image = call.arguments.image
    with call.store() as store:
        name = _container(call, store)
        if _planned(call, lambda plans: plans.container_commit(store, name, image)):
            return
        made = store.images.commit(name, image)
        report_volume(call, store, made, f"committed {call.arguments.name} as image {image}")


def remove(call: Call) -> None:
    """Remove a container. Raise InUse if an engine has it, unless forced."""
    from dmthin.store.state.model import Kind

    given, force = call.arguments.name, call.arguments.force
    with call.store() as store:
        name = meant_to_remove(store, given, Kind.CONTAINER, force=force)
        if _planned(call, lambda plans: plans.container_remove(store, name, force=force)):
            return
        number = store.ledger.ready(name, Kind.CONTAINER).device_id
        store.containers.remove(name, force=force)
        remains = store.ledger.by_id(number) is not None
    text = f"removed container {given}" + ("; its space is freed after its last use" if remains else "")
    call.output.changed(text, {"removed": name})


def _container(call: Call, store: "Store") -> str:
    """Return the name of the volume that the argument NAME means. Raise InvalidValue if it may be several."""
    from dmthin.store.state.model import Kind

    return meant(store, call.arguments.name, Kind.CONTAINER)


def _planned(call: Call, plan: Callable[[Any], list[str]]) -> bool:
    """Return whether this is a dry run; if so, print its plan."""
    if not call.options.dry_run:
        return False
    from dmthin.cli import volume_plans

    call.output.plan(plan(volume_plans))
    return True
