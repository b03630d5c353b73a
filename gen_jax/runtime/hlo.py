"""What a compiled program sends between chips, read off its text."""

import re
from collections import Counter
from collections.abc import Iterator

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$')
INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(')
SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')
CALLED = re.compile(r'\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)')
BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {'count', 'bytes'}} of a compiled program, per device and run.

    Args:
      text: `jax.stages.Compiled.as_text()`.

    Returns:
      Of each of `KINDS` that occurs: how often it runs, and the bytes of its results. What a loop
      holds counts as often as the loop runs where the program says so (a known trip count, or a
      counter compared with a constant), else once. A pair of start and done counts once, and of
      branches the one that sends most.
    """
    computations, entry = _computations(text)
    counts, sizes = _sent(computations, entry)
    return {kind: {'count': counts[kind], 'bytes': sizes[kind]} for kind in KINDS if counts[kind]}


def _sent(computations: dict, name: str) -> tuple[Counter, Counter]:
    """How often each kind runs in one run of a computation, and the bytes of its results."""
    counts, sizes, seen = Counter(), Counter(), set()
    for line, times, fused in _run(computations, name, 1, False):
        found = INSTRUCTION.match(line)
        kind = found[2].removesuffix('-done')
        if kind not in KINDS:
            continue
        # A collective that overlaps with computation has a copy in each fusion it overlaps with.
        channel = re.search(r'channel_id=(\d+)', line)
        if fused and channel:
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        counts[kind] += times
        sizes[kind] += times * shape_bytes(found[1])
    return counts, sizes


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape such as 'f32[8,4]{1,0}', or of a tuple of them; layouts add nothing."""
    total = 0
    for dtype, bits, sizes in SHAPE.findall(shape):
        elements = 1
        for size in sizes.split(','):
            elements *= int(size or 1)
        total += elements * (1 if dtype == 'pred' else int(bits)) // (1 if dtype == 'pred' else 8)
    return total


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Each computation's lines of instructions by its name, and the name of the first to run."""
    computations, entry, lines = {}, '', []
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif INSTRUCTION.match(line):
            lines.append(line)
    return computations, entry


def _run(computations: dict, name: str, times: int, fused: bool) -> Iterator[tuple[str, int, bool]]:
    """Every instruction that runs: its line, how often, and whether inside a fusion."""
    for line in computations[name]:
        yield line, times, fused
        operation = INSTRUCTION.match(line)[2]
        if operation.endswith('-done') or operation in KINDS:
            continue  # what they call adds two numbers, or is their start
        called = CALLED.findall(line)
        if branches := BRANCHES.search(line):
            called += re.findall(r'[\w.-]+', branches[1])
        if operation == 'conditional':
            called = [max(called, key=lambda branch: _sent(computations, branch)[1].total())]
        trips = _trips(line, computations) if operation == 'while' else 1
        for callee in called:
            yield from _run(computations, callee, times * trips, fused or operation == 'fusion')


def _trips(line: str, computations: dict) -> int:
    """How often a loop runs; 1 where nothing says."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = computations[re.search(r'condition=%?([\w.-]+)', line)[1]]
    compared = [x for x in condition if ' compare(' in x and 'direction=LT' in x]
    limits = [x for x in condition if re.search(r' = [su]32\[\]\S* constant\(\d+\)', x)]
    if len(compared) == len(limits) == 1:
        return int(re.search(r' constant\((\d+)\)', limits[0])[1])
    return 1
