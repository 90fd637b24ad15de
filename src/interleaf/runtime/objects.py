"""Objects with declared shared fields: how a model writes a kernel struct.

    class Inode(Object):
        number = Const(int)                  # given at creation, never changes
        size = Plain(0)                      # inode.size is a plain access
        flags = Marked(0)                    # inode.flags is a marked access: a scheduling point
        pages = Array(0)                     # inode.pages[i], plain; sparse, all elements start as 0
        lock = Embedded(spinlock_t)          # an object inside the object

An object is a *handle*: it has a name, and its fields live in cells of the current memory. The n-th object of
a class that a task creates has the same name in every execution. A class with `freeable = True` has a life:
its fields may be used between `new` and `free` only.

`Class.field` is the field itself, as in `READ_ONCE(inode, Inode.size)`; `Class.pages[i]` is one element.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from .carrier import READ, WRITE, Op, perform, running
from .cells import SETUP, Cell, World
from .findings import ModelError, Violation, ViolationRaised
from .memory import ALIVE, FREED, Memory
from .values import Value, canonical

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
O = TypeVar("O", bound="Object")  # noqa: E741 - the letter for "object"


class Object:
    """Base of all model objects. Make one with `new(Class, field=value, ...)` inside a task."""

    _is_handle: ClassVar[bool] = True
    freeable: ClassVar[bool] = False
    fields: ClassVar[dict[str, Field[Any]]] = {}
    constants: ClassVar[dict[str, Const[Any]]] = {}

    world: World
    name: str
    root: Object
    """The outermost object that this one is embedded in (itself if in none)."""
    life: Cell | None
    """The life cell of the outermost object, None where that is never freed."""
    serial: int
    """A number of its own among the objects of its class, the same in every execution (for made-up addresses)."""
    domain_name: str
    """Class and embedding path: the prefix of the names of this object's lock-discipline domains."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.fields = {}
        cls.constants = {}
        for ancestor in reversed(cls.__mro__):
            for attribute in vars(ancestor).values():
                if isinstance(attribute, Field):
                    cls.fields[attribute.name] = attribute
                elif isinstance(attribute, Const):
                    cls.constants[attribute.name] = attribute

    def __repr__(self) -> str:
        return self.name

    def cells(self) -> list[Cell]:
        """Every cell of this object and of those embedded in it that any execution has touched."""
        return self.__dict__["_all_cells"]  # type: ignore[no-any-return]


def intern_object(
    world: World,
    cls: type[O],
    name: str,
    parent: Object | None,
    domain_name: str,
    constants: dict[str, Value],
) -> O:
    """The handle called `name`, the same one each time it is asked for."""
    key = (cls, name, tuple(constants.items()))
    found = world.objects.get(key)
    if found is not None:
        return found  # type: ignore[return-value]
    handle = cls.__new__(cls)
    handle.world = world
    handle.name = name
    handle.root = parent.root if parent is not None else handle
    handle.domain_name = domain_name
    handle.life = None
    handle.__dict__["_cells"] = {}
    handle.__dict__["_all_cells"] = parent.cells() if parent is not None else []
    handle.__dict__.update({f"_const_{key}": value for key, value in constants.items()})
    if parent is not None:
        handle.life = parent.life
    elif cls.freeable:
        handle.life = world.intern_cell(handle, 0, "life")
    world.objects[key] = handle
    return handle


def singleton(world: World, cls: type[O]) -> O:
    """The one object of `cls` in every execution, there from the start (the kernel's global variables)."""
    found = world.singletons.get(cls)
    if found is None:
        constants = {name: const.default for name, const in cls.constants.items()}
        found = world.singletons[cls] = intern_object(world, cls, cls.__name__, None, cls.__name__, constants)
    return found  # type: ignore[return-value]


def by_serial(world: World, cls: type[O], serial: int) -> O:
    """The object of `cls` whose `serial` this is; only for classes without constants."""
    found = world.serials.get((cls, serial))
    if found is None:
        raise ModelError(f"no {cls.__name__} without constants has the serial {serial:#x}.")
    return found  # type: ignore[return-value]


class Const(Generic[T]):
    """A field that is given at creation and never changes: reading it is no operation."""

    def __init__(self, kind: type[T], default: T | None = None) -> None:
        self.kind = kind
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.slot = f"_const_{name}"

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Object, owner: type) -> T: ...
    def __get__(self, obj: Object | None, owner: type) -> Any:
        return self if obj is None else obj.__dict__[self.slot]

    def __set__(self, obj: Object, value: T) -> None:
        raise ModelError(f"{obj}.{self.name} is declared Const; declare it Plain or Marked if it changes.")


class Field(Generic[T]):
    """A shared field; `marked` fields are scheduling points at each access, others are plain."""

    _is_handle: ClassVar[bool] = True
    marked = False

    def __init__(self, default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        canonical(self.default, f"default of {owner.__name__}.{name}")
        self.name = name

    def cell(self, obj: Object) -> Cell:
        """The cell of this field in `obj`."""
        cells: dict[Any, Cell] = obj.__dict__["_cells"]
        found = cells.get(self.name)
        if found is None:
            found = cells[self.name] = obj.world.intern_cell(obj, self.default, self.name)
            obj.cells().append(found)
        return found

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Object, owner: type) -> T: ...
    def __get__(self, obj: Object | None, owner: type) -> Any:
        if obj is None:
            return self
        carrier = running()
        if carrier.direct is not None:
            return carrier.direct.read(self.cell(obj))
        return carrier.perform(Read(self.cell(obj), self.marked))

    def __set__(self, obj: Object, value: T) -> None:
        carrier = running()
        if carrier.direct is not None:
            carrier.direct.write(self.cell(obj), value)
            return
        carrier.perform(Write(self.cell(obj), canonical(value, f"{obj.name}.{self.name}"), self.marked))


class Plain(Field[T]):
    """A field whose ordinary accesses are plain, as C's are: the checker looks for data races on it."""


class Marked(Field[T]):
    """A field whose every access is READ_ONCE or WRITE_ONCE."""

    marked = True


class Element(Field[T]):
    """One element of an array field, by itself: `Class.array[i]`."""

    _is_handle = False  # each time another one

    def __init__(self, array: Array[T], index: Value) -> None:
        super().__init__(array.default)
        self.array = array
        self.index = index
        self.name = f"{array.name}[{index}]"

    def cell(self, obj: Object) -> Cell:
        return self.array.element(obj, self.index)


class Slots(Generic[T]):
    """`obj.array`: plain access to the elements."""

    __slots__ = ("array", "obj")

    def __init__(self, obj: Object, array: Array[T]) -> None:
        self.obj = obj
        self.array = array

    def __getitem__(self, index: Value) -> T:
        return perform(Read(self.array.element(self.obj, index), False))  # type: ignore[no-any-return]

    def __setitem__(self, index: Value, value: T) -> None:
        cell = self.array.element(self.obj, index)
        perform(Write(cell, canonical(value, cell.label), False))

    def __iter__(self) -> Iterator[T]:
        raise ModelError(f"{self.obj}.{self.array.name} has no length: say which elements are meant.")


class Array(Generic[T]):
    """A sparse array of shared elements; every element starts as `default`, and any index will do."""

    _is_handle: ClassVar[bool] = True

    def __init__(self, default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        canonical(self.default, f"default of {owner.__name__}.{name}")
        self.name = name

    def element(self, obj: Object, index: Value) -> Cell:
        cells: dict[Any, Cell] = obj.__dict__["_cells"]
        key = (self.name, index)
        found = cells.get(key)
        if found is None:
            found = cells[key] = obj.world.intern_cell(obj, self.default, self.name, index)
            obj.cells().append(found)
        return found

    def touched(self, obj: Object) -> list[Any]:
        """The indices of the elements in `obj` that any execution has touched; all others are as they started."""
        return [key[1] for key in obj.__dict__["_cells"] if isinstance(key, tuple) and key[0] == self.name]

    def next_changed(self, obj: Object, start: int, end: int) -> int | None:
        """In a task: the first index from `start` on, before `end`, whose element may not be as it started any more.

        That is known in a live run only; where other executions count, it is `start`.
        """
        direct = running().direct
        return start if direct is None else direct.ask(direct.next_changed, obj, self.name, start, end)

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Object, owner: type) -> Slots[T]: ...
    def __get__(self, obj: Object | None, owner: type) -> Any:
        return self if obj is None else Slots(obj, self)

    def __getitem__(self, index: Value) -> Element[T]:
        return Element(self, index)


class Embedded(Generic[O]):
    """An object inside another one, with the life of its container."""

    def __init__(self, cls: Callable[..., O], **constants: Value) -> None:
        self.cls = cls
        self.constants = constants

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.slot = f"_embedded_{name}"

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Object, owner: type) -> O: ...
    def __get__(self, obj: Object | None, owner: type) -> Any:
        if obj is None:
            return self
        found = obj.__dict__.get(self.slot)
        if found is None:
            cls: Any = self.cls
            constants = {name: const.default for name, const in cls.constants.items()} | self.constants
            found = obj.__dict__[self.slot] = intern_object(
                obj.world, cls, f"{obj.name}.{self.name}", obj, f"{obj.domain_name}.{self.name}", constants
            )
            found.__dict__["container"] = obj
        return found


def container_of(embedded: Object, cls: type[O]) -> O:
    """The object that `embedded` is a part of, as the kernel's macro."""
    outer = embedded.__dict__.get("container")
    if not isinstance(outer, cls):
        raise ModelError(f"{embedded} is not embedded in a {cls.__name__} but in {outer!r}.")
    return outer


def new(cls: type[O], **values: Value) -> O:
    """Create an object: constants and initial field values by name. One operation, never a race."""
    return perform(New(cls, tuple(values.items())))  # type: ignore[no-any-return]


def free(obj: Object) -> None:
    """Free an object: its fields are poisoned, and any later access is a use-after-free."""
    perform(Free(obj))


class Read(Op):
    """Read one cell."""

    kind = READ

    def __init__(self, cell: Cell, marked: bool) -> None:
        self.cell = self.focus = cell
        self.marked = marked

    def run(self, memory: Memory) -> Value:
        return memory.load_cell(self.cell, not self.marked)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} == {show(result)}"

    def attempted(self) -> str:
        return f"reads {self.cell.label}"


def read_cell(cell: Cell, reading: Callable[..., Read], *arguments: Value) -> Value:
    """Read a cell by an operation of the class `reading`, which is made only where somebody may look at it."""
    carrier = running()
    if carrier.direct is not None:
        return carrier.direct.read(cell)
    return carrier.perform(reading(cell, *arguments))


class Write(Op):
    """Write one cell."""

    kind = WRITE

    def __init__(self, cell: Cell, value: Value, marked: bool) -> None:
        self.cell = self.focus = cell
        self.value = value
        self.marked = marked

    def run(self, memory: Memory) -> Value:
        memory.store_cell(self.cell, self.value, not self.marked)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} = {show(self.value)}"


class New(Op):
    """Create the next object of a class; its name is (creating task, class, how many before it)."""

    local = True

    def __init__(self, cls: type[Object], values: tuple[tuple[str, Value], ...]) -> None:
        self.cls = cls
        self.values = values

    def run(self, memory: Memory) -> Object:
        world = memory.world
        task = world.tasks[memory.task]
        counter = _created.element(task, self.cls)
        count = memory.peek(counter)
        memory.set(counter, count + 1)
        constants = {name: const.default for name, const in self.cls.constants.items()}
        initial = []
        for name, value in self.values:
            if name in constants:
                constants[name] = value
            elif name in self.cls.fields:
                initial.append((self.cls.fields[name], value))
            else:
                known = ", ".join([*self.cls.constants, *self.cls.fields])
                raise ModelError(f"{self.cls.__name__} has no field {name!r}; it has {known}.")
        kind = self.cls.__name__
        name = kind if task.name == SETUP else f"{task.name}:{kind}"
        obj = intern_object(world, self.cls, f"{name}{count}", None, kind, constants)
        if "serial" not in obj.__dict__:
            obj.__dict__["serial"] = world.serial(self.cls, task, count)
            if not constants:
                world.serials[self.cls, obj.serial] = obj
        if obj.life is not None:
            memory.set(obj.life, ALIVE)
        for field, value in initial:
            memory.set(field.cell(obj), value)
        if memory.observer is not None:
            memory.observer.life(memory.task, obj, ALIVE)
        return obj

    def text(self, result: Value) -> str:
        return f"allocate {result}"


class Free(Op):
    """End the life of an object; its fields go back to their defaults, so that they leave the hash."""

    def __init__(self, obj: Object) -> None:
        if obj.life is None or obj.root is not obj:
            raise ModelError(f"free({obj}): only an outermost object of a class with freeable = True can be freed.")
        self.obj = obj
        self.life = self.focus = obj.life

    def run(self, memory: Memory) -> None:
        if memory.peek(self.life) != ALIVE:
            memory.writes |= self.life.bit  # a search must see that this comes from the other freeing
            raise ViolationRaised(
                Violation("double-free", f"{self.obj} is freed, but it is not allocated", True, self.obj.name)
            )
        memory.store_cell(self.life, FREED)
        for cell in self.obj.cells():
            memory.set(cell, cell.default)
        memory.world.freed(self.obj)
        if memory.observer is not None:
            memory.observer.life(memory.task, self.obj, FREED)

    def text(self, result: Value) -> str:
        return f"free {self.obj}"


def show(value: Value) -> str:
    """A value for people: large numbers in hex."""
    if isinstance(value, int) and not isinstance(value, (bool, enum.Enum)) and abs(value) > 255:
        return hex(value)
    if isinstance(value, enum.Enum):
        return value.name
    return value.__name__ if isinstance(value, types.FunctionType) else str(value)


_created: Array[int] = Array(0)
_created.__set_name__(Object, "created")
