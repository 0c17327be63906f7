"""The verbs of images: import, remove, verify."""

from pathlib import Path
from typing import TYPE_CHECKING

from dmthin.cli.call import Call
from dmthin.cli.owners import meant_to_remove
from dmthin.cli.results import report_volume
from dmthin.cli.sizes import human
from dmthin.cli.table import aligned
from dmthin.errors import NeedsRepair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmthin.layers.unpack import Progress
    from dmthin.layers.verifying import VerifiedLayer
    from dmthin.store.store import Store


def import_(call: Call) -> None:
    """Create an image from a tar or a directory."""
    from dmthin.cli.progress import line_on_terminal, unpacking

    name: str = call.arguments.name
    source: str = call.arguments.source
    size = call.volume_size()
    last: Progress | None = None
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import volume_plans

            call.output.plan(volume_plans.image_import(store, name, source, size))
            return
        if size is not None:
            call.confirm_size(store, name, store.images.plan_import(name, size).size)
        with line_on_terminal(call.output) as line:

            def progress(now: "Progress") -> None:
                nonlocal last
                last = now
                if line is not None:
                    line.show(lambda: unpacking(now, line.seconds))

            image = store.images.import_(name, source, size=size, progress=progress)
        content = f", {last.entries} entries, {human(last.bytes)} in files" if last else ""
        report_volume(call, store, image, f"imported {name}: {human(image.size)}{content}")


def remove(call: Call) -> None:
    """Remove an image without children. Raise InUse if an engine has it, unless forced."""
    from dmthin.store.state.model import Kind

    with call.store() as store:
        name = meant_to_remove(store, call.arguments.name, Kind.IMAGE, force=call.arguments.force)
        if call.options.dry_run:
            from dmthin.cli import volume_plans

            call.output.plan(volume_plans.image_remove(store, name))
            return
        store.images.remove(name)
    call.output.changed(f"removed image {call.arguments.name}", {"removed": name})


def verify(call: Call) -> None:
    """Compare the layers of an engine's images with their tars. Raise NeedsRepair if one differs, NotFound."""
    with call.store() as store:
        containerd = bool(store.snapshots.committed())
        found = list(_verified(store, call, containerd))
    if call.output.as_json:
        layers = [
            {
                "chain_id": layer.chain,
                "volume": layer.volume,
                "images": list(layer.images),
                "problems": list(layer.problems),
                "unchecked": layer.unchecked,
            }
            for layer in found
        ]
        call.output.document({"layers": layers})
    elif found:
        lines = [["LAYER", "IMAGES", "PROBLEM"]]
        for layer in found:
            first = [short_digest(layer.chain), ",".join(map(short_digest, layer.images)) or "-"]
            unchecked = f"not checked: {layer.unchecked}" if layer.unchecked else "-"
            lines += [[*first, problem] for problem in layer.problems or (unchecked,)]
        call.output.data(aligned(lines, (False, False, False)))
    damaged = [layer for layer in found if layer.problems]
    if damaged:
        images = " ".join(sorted({name for layer in damaged for name in layer.images}))
        way = f"ctr images rm --sync; their digests: {images}" if containerd else f"docker rmi {images}"
        raise NeedsRepair(
            f"{len(damaged)} of {len(found)} layers differ from their tars",
            hint=f"remove the images, and load or pull them again: {way}",
        )


def _verified(store: "Store", call: Call, containerd: bool) -> "Iterator[VerifiedLayer]":
    """Verify with the records of the engine whose store it is."""
    names = frozenset(call.arguments.names)
    if containerd:
        from dmthin.containerd.blobs import DEFAULT_ROOT
        from dmthin.containerd.verify import verify_snapshots

        return verify_snapshots(store, Path(call.arguments.containerd_root or DEFAULT_ROOT), names)
    from dmthin.docker.verify import verify_layers

    return verify_layers(store, names)


def short_digest(name: str) -> str:
    """Return the first 12 digits of a digest, any other name as it is."""
    return name[7:19] if name.startswith("sha256:") else name
