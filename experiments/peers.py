"""What comparisons with other people's packages share."""

import statistics
import sys
import time
from collections.abc import Callable


def import_torchvision() -> None:
    """The packages import it for their data sets; it may be built for another torch than is there.

    Its compiled part then fails to load, silently, and with it two operators that it describes at
    import. Nothing here calls them.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        for operator in ('nms', 'qnms'):
            schema = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
            torch.library.define(f'torchvision::{operator}', schema)
        import torchvision  # noqa: F401


def seconds(function: Callable, *args) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def interleaved(functions: dict[str, Callable], turns: int) -> dict[str, list[float]]:
    """Seconds of every function in every turn, one after the other, after a call to warm up."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def ratios(times: dict[str, list[float]], ours: str) -> dict[str, dict]:
    """How many times as fast `ours` is as each other: median, least and greatest over the turns."""
    found = {}
    for name, theirs in times.items():
        if name != ours:
            each = [b / a for a, b in zip(times[ours], theirs, strict=True)]
            found[name] = {
                'ratio': statistics.median(each),
                'least': min(each),
                'greatest': max(each),
            }
    return found
