"""What was measured on several processors and GPUs, in one file of results, and their ratios side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whtnet.tables.table import Cell, Column, Table
from whtnet.tables.training import place

_OTHERS = "others"


def with_measurement(stored: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of results holds once a measurement is in it.

    The first measurement is the one that claims are judged by; those of other processors and GPUs are a list in it,
    ``others``. A measurement takes the place of the one of the same device.

    Args:
        stored: what the file holds; None before the first measurement.
        measured: what was measured, and its ``environment``.
    """
    kept = measurements(stored) if stored else []
    devices = [_device(one) for one in kept]
    if _device(measured) in devices:
        kept[devices.index(_device(measured))] = measured
    else:
        kept.append(measured)
    first, *others = kept
    return {**first, _OTHERS: others} if others else dict(first)


def measurements(stored: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The measurements that a file of results holds, one for each device."""
    first = {name: value for name, value in stored.items() if name != _OTHERS}
    return [first, *stored.get(_OTHERS, ())]


def of_device(stored: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the measurements in ``stored`` the one on the device of ``other``, else the first."""
    found = measurements(stored)
    return next((one for one in found if _device(one) == _device(other)), found[0])


def _device(measured: Mapping[str, Any]) -> str:
    return measured["environment"]["device_name"]


def devices_table(
    of: Sequence[Column],
    rows: Iterable[tuple[Sequence[str], Sequence[Cell]]],
    measured: Sequence[Mapping[str, Any]],
    intro: str,
) -> Table:
    """Ratios side by side for each device.

    Args:
        of: the columns that say what a row is.
        rows: for each row, its texts in these columns, and its ratio in each measurement.
        measured: the :func:`measurements`.
        intro: what the ratios are.
    """
    devices = [_device(one) for one in measured]
    names = [*(column.name for column in of), *devices]
    return Table(
        "Ratios by processor",
        [*of, *(Column(device, f"× {device}", ".2f", quartiles=True) for device in devices)],
        [dict(zip(names, [*texts, *ratios], strict=True)) for texts, ratios in rows],
        intro,
        [f"Measured on {place(one['environment'])}." for one in measured],
    )
