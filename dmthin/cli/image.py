"""The verbs of images: import, remove, verify."""

from typing import TYPE_CHECKING

from dmthin.cli.call import Call
from dmthin.cli.results import report_volume
from dmthin.cli.sizes import human
from dmthin.cli.table import aligned
from dmthin.errors import NeedsRepair

if TYPE_CHECKING:
    from dmthin.layers.unpack import Progress


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
    """Remove an image without children."""
    name: str = call.arguments.name
    with call.store() as store:
        if call.options.dry_run:
            from dmthin.cli import volume_plans

            call.output.plan(volume_plans.image_remove(store, name))
            return
        store.images.remove(name)
    call.output.changed(f"removed image {name}", {"removed": name})


def verify(call: Call) -> None:
    """Compare layers of dockerd's images with their tars. Raise NeedsRepair if one differs."""
    from dmthin.docker.verify import verify_layers

    with call.store() as store:
        found = list(verify_layers(store, frozenset(call.arguments.names)))
    if call.output.as_json:
        layers = [
            {
                "chain_id": one.layer.chain,
                "volume": one.layer.volume,
                "images": list(one.images),
                "problems": list(one.problems),
            }
            for one in found
        ]
        call.output.document({"layers": layers})
    elif found:
        lines = [["LAYER", "IMAGES", "PROBLEM"]]
        for one in found:
            first = [one.layer.chain.partition(":")[2][:12], ",".join(one.images) or "-"]
            lines += [[*first, problem] for problem in one.problems or ("-",)]
        call.output.data(aligned(lines, (False, False, False)))
    damaged = [one for one in found if one.problems]
    if damaged:
        images = sorted({name for one in damaged for name in one.images})
        raise NeedsRepair(
            f"{len(damaged)} of {len(found)} layers differ from their tars",
            hint=f"remove the images, and load or pull them again: docker rmi {' '.join(images)}",
        )
