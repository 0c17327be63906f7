"""The whole store against a model: random verbs, some of them by another process, on the real kernel."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from dmthin.errors import AlreadyExists, InUse, InvalidValue, NotFound
from dmthin.store.state.model import Kind
from dmthin.store.store import Store
from dmthin.units import MIB
from tests.support import processes
from tests.support.examples import examples
from tests.support.stores import check_store, with_store

_NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
_FILES = st.sampled_from(["one", "two", "three"])
_TEXTS = st.text("xyz", max_size=9)
_SIZES = st.sampled_from([128 * MIB, 256 * MIB, 320 * MIB, 512 * MIB])


@dataclass(frozen=True)
class Expected:
    """What the model knows of one volume."""

    kind: Kind
    parent: str | None
    size: int
    files: dict[str, str] = field(default_factory=dict)
    mounted: bool = False


class StoreMachine(RuleBasedStateMachine):
    """Every rule does to the model what it asks of the store, errors included."""

    root: Path
    tree: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.root)
        self.model: dict[str, Expected] = {}

    def teardown(self) -> None:
        for kind in (Kind.CONTAINER, Kind.IMAGE):
            names = [name for name, expected in self.model.items() if expected.kind is kind]
            for name in names if kind is Kind.CONTAINER else self._images_from_the_leaves(names):
                if kind is Kind.CONTAINER:
                    self.store.containers.remove(name, force=True)
                else:
                    self.store.images.remove(name)
        assert all(volume.kind is Kind.BASE for volume in self.store.ledger.volumes())
        self.store.close()

    def _images_from_the_leaves(self, names: list[str]) -> list[str]:
        ordered: list[str] = []
        while len(ordered) < len(names):
            left = [name for name in names if name not in ordered]
            ordered += [name for name in left if not any(self.model[other].parent == name for other in left)]
        return ordered

    def _do(self, elsewhere: bool, action: Callable[[Store], object], error: type[Exception] | None) -> None:
        """Carry out an action, here or in another process, and see that it ends as the model says."""
        if not elsewhere:
            _expect(action, self.store, error)
            return
        self.store.ledger.close()
        expect = partial(_expect, action, error=error)
        assert processes.run(partial(with_store, self.root, expect)) == 0, "the other process found something else"

    def _of_kind(self, name: str, kind: Kind) -> Expected | None:
        expected = self.model.get(name)
        return expected if expected is not None and expected.kind is kind else None

    @rule(name=_NAMES, elsewhere=st.booleans())
    def import_image(self, name: str, elsewhere: bool) -> None:
        taken = name in self.model
        self._do(elsewhere, lambda store: store.images.import_(name, self.tree), AlreadyExists if taken else None)
        if not taken:
            self.model[name] = Expected(Kind.IMAGE, None, 256 * MIB, {"etc/motd": "hello\n"})

    @precondition(lambda self: self.model)
    @rule(image=_NAMES, name=_NAMES, size=st.none() | _SIZES, elsewhere=st.booleans())
    def create_container(self, image: str, name: str, size: int | None, elsewhere: bool) -> None:
        parent = self._of_kind(image, Kind.IMAGE)
        error: type[Exception] | None = None
        if parent is None:
            error = NotFound
        elif size is not None and size < parent.size:
            error = InvalidValue
        elif name in self.model:
            error = AlreadyExists
        self._do(elsewhere, lambda store: store.containers.create(image, name, size=size), error)
        if error is None and parent is not None:
            self.model[name] = Expected(Kind.CONTAINER, image, size or parent.size, dict(parent.files))

    @precondition(lambda self: self.model)
    @rule(name=_NAMES, elsewhere=st.booleans())
    def mount(self, name: str, elsewhere: bool) -> None:
        expected = self._of_kind(name, Kind.CONTAINER)
        self._do(elsewhere, lambda store: store.containers.mount(name), None if expected else NotFound)
        if expected:
            self.model[name] = replace(expected, mounted=True)

    @precondition(lambda self: self.model)
    @rule(name=_NAMES, elsewhere=st.booleans())
    def unmount(self, name: str, elsewhere: bool) -> None:
        expected = self._of_kind(name, Kind.CONTAINER)
        self._do(elsewhere, lambda store: store.containers.unmount(name), None if expected else NotFound)
        if expected:
            self.model[name] = replace(expected, mounted=False)

    @precondition(lambda self: any(expected.mounted for expected in self.model.values()))
    @rule(data=st.data(), file=_FILES, text=_TEXTS)
    def write(self, data: st.DataObject, file: str, text: str) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, expected in self.model.items() if expected.mounted)))
        (self.store.layout.mount_point(name) / file).write_text(text)
        self.model[name].files[file] = text

    @precondition(lambda self: self.model)
    @rule(name=_NAMES, size=_SIZES, elsewhere=st.booleans())
    def resize(self, name: str, size: int, elsewhere: bool) -> None:
        expected = self._of_kind(name, Kind.CONTAINER)
        error = None if expected and size >= expected.size else InvalidValue if expected else NotFound
        self._do(elsewhere, lambda store: store.containers.resize(name, size), error)
        if error is None and expected:
            self.model[name] = replace(expected, size=size)

    @precondition(lambda self: self.model)
    @rule(container=_NAMES, name=_NAMES, elsewhere=st.booleans())
    def commit(self, container: str, name: str, elsewhere: bool) -> None:
        source = self._of_kind(container, Kind.CONTAINER)
        error = NotFound if source is None else AlreadyExists if name in self.model else None
        self._do(elsewhere, lambda store: store.images.commit(container, name), error)
        if error is None and source is not None:
            self.model[name] = Expected(Kind.IMAGE, source.parent, source.size, dict(source.files))

    @precondition(lambda self: self.model)
    @rule(name=_NAMES, force=st.booleans(), elsewhere=st.booleans())
    def remove_container(self, name: str, force: bool, elsewhere: bool) -> None:
        expected = self._of_kind(name, Kind.CONTAINER)
        error = NotFound if expected is None else InUse if expected.mounted and not force else None
        self._do(elsewhere, lambda store: store.containers.remove(name, force=force), error)
        if error is None:
            del self.model[name]

    @precondition(lambda self: self.model)
    @rule(name=_NAMES, elsewhere=st.booleans())
    def remove_image(self, name: str, elsewhere: bool) -> None:
        has_children = any(expected.parent == name for expected in self.model.values())
        error = NotFound if self._of_kind(name, Kind.IMAGE) is None else InUse if has_children else None
        self._do(elsewhere, lambda store: store.images.remove(name), error)
        if error is None:
            del self.model[name]

    @rule(elsewhere=st.booleans())
    def pool_down(self, elsewhere: bool) -> None:
        mounted = any(expected.mounted for expected in self.model.values())
        self._do(elsewhere, lambda store: store.pool.deactivate(), InUse if mounted else None)

    @invariant()
    def the_ledger_is_the_model(self) -> None:
        volumes = {volume.name: volume for volume in self.store.ledger.volumes() if volume.kind is not Kind.BASE}
        assert set(volumes) == set(self.model)
        for name, expected in self.model.items():
            assert (volumes[name].kind, volumes[name].size) == (expected.kind, expected.size)

    @invariant()
    def every_mounted_container_holds_what_was_written(self) -> None:
        for name, expected in self.model.items():
            if expected.mounted:
                place = self.store.layout.mount_point(name)
                files = [path for path in place.rglob("*") if path.is_file()]
                assert {str(path.relative_to(place)): path.read_text() for path in files} == expected.files


def _expect(action: Callable[[Store], object], store: Store, error: type[Exception] | None) -> None:
    if error is None:
        action(store)
        return
    with pytest.raises(error):
        action(store)


def test_the_store_behaves_as_its_model(store: Store, tree: Path) -> None:
    root = store.layout.root
    store.ledger.close()
    machine = type("Machine", (StoreMachine,), {"root": root, "tree": tree})
    run_state_machine_as_test(
        machine,
        settings=settings(examples(usual=12, deep=200), stateful_step_count=30),
    )
    with Store(root) as now:
        check_store(now)
