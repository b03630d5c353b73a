"""What a compiled program sends between chips, read off its text."""

import re
from collections import Counter
from collections.abc import Iterator

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$')
INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(')
SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')
CALLED = re.compile(r'\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)')
# A TPU's reduce-scatter: a fusion of an all-reduce, whose slices alone are its result.
SCATTERS = re.compile(r' fusion\(.*\bcalls=%?(all-reduce-scatter[\w.-]*)')
BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')


def collectives(text: str) -> dict[str, dict[str, float]]:
    """{kind: {'count', 'bytes', 'sent'}} of a compiled program, per device and run.

    Args:
      text: `jax.stages.Compiled.as_text()`.

    Returns:
      Of each of `KINDS` that occurs: how often it runs, the bytes of its results, and those that a
      device has to send at the least: of an all-reduce among n devices 2 (n - 1) / n of its result,
      of an all-gather and an all-to-all (n - 1) / n, of a reduce-scatter n - 1 times its result
      (Patarasuk and Yuan 2009, section 3). What a loop holds counts as often as the loop runs where
      the program says so (a known trip count, or a counter compared with a constant), else once. A
      pair of start and done counts once, and of branches the one that has the largest results.
    """
    computations, entry = _computations(text)
    partitions = re.search(r'num_partitions=(\d+)', text)
    counts, sizes, sent = _counted(computations, entry, int(partitions[1]) if partitions else 1)
    return {
        kind: {'count': counts[kind], 'bytes': sizes[kind], 'sent': sent[kind]}
        for kind in KINDS
        if counts[kind]
    }


def _counted(computations: dict, name: str, devices: int) -> tuple[Counter, Counter, Counter]:
    """How often each kind runs in one run of a computation, its results' bytes, those sent."""
    counts, sizes, sent, seen = Counter(), Counter(), Counter(), set()
    for line, whole, times, fused in _run(computations, name, 1, False):
        found = INSTRUCTION.match(line)
        kind = 'reduce-scatter' if SCATTERS.search(line) else found[2].removesuffix('-done')
        if kind not in KINDS:
            continue
        # A collective that overlaps with computation has a copy in each fusion it overlaps with.
        channel = re.search(r'channel_id=(\d+)', whole)
        if fused and channel:
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        size, n = shape_bytes(found[1]), _group(whole) or devices
        counts[kind] += times
        sizes[kind] += times * size
        sent[kind] += times * size * _share(kind, n)
    return counts, sizes, sent


def _share(kind: str, n: int) -> float:
    """What of its result a device sends at the least, in a collective among n."""
    if kind == 'collective-permute':
        return 1.0
    return {'all-reduce': 2 / n, 'reduce-scatter': 1.0}.get(kind, 1 / n) * (n - 1)


def _group(line: str) -> int:
    """Devices of a collective, by replica_groups={{0,1},{2,3}} or [4,2]<=[8]; 0: all there are."""
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return listed[1].count(',') + 1
    counted = re.search(r'replica_groups=\[\d+,(\d+)\]', line)
    return int(counted[1]) if counted else 0


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


def _run(
    computations: dict, name: str, times: int, fused: bool
) -> Iterator[tuple[str, str, int, bool]]:
    """Every instruction that runs: its line, how often, and whether inside a fusion.

    After its line comes text with what a collective's line may leave to others: its start, and what
    is fused in it.
    """
    for line in computations[name]:
        operation = INSTRUCTION.match(line)[2]
        whole = [line]
        if operation.removesuffix('-done') in KINDS and operation.endswith('-done'):
            begun = re.search(r'-done\((?:.* )?%?([\w.-]+)\)', line)[1]
            whole = [x for x in computations[name] if re.match(rf'\s+%?{re.escape(begun)} = ', x)]
        scatters = SCATTERS.search(line)
        yield line, '\n'.join(computations[scatters[1]] if scatters else whole), times, fused
        if operation.endswith('-done') or operation in KINDS or scatters:
            continue  # what they call adds two numbers, or is their start
        called = CALLED.findall(line)
        if branches := BRANCHES.search(line):
            called += re.findall(r'[\w.-]+', branches[1])
        if operation == 'conditional':
            called = [max(called, key=lambda branch: _counted(computations, branch, 1)[1].total())]
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
