"""The GPU kernels, in Triton: both layers, forward and backward, over every layout.

A program works on tiles of ITEMS items (maps, or pixels) by P points (the coefficients of a block), which it keeps in
registers from the read to the write. Where an item lies, and where its points, is said by strides (a side), so that
NCHW and channels_last, padding and strides are the same code. Items that are neighbours in memory, or points that are,
make accesses of whole cache lines; the compiler finds out which from the strides that are 1.

With more blocks on one side than on the other, a program takes one block of the narrow side and all that are paired
with it on the wide side: every activation is still read once and written once. What overlapping windows or means add up
is written block by block in float32, and added up by `fold`: no atomics, so that it comes out the same in every run.

Source of the method: :mod:`whtnet.kernels.reference`. ``TRITON_INTERPRET=1`` runs all of it on the CPU.
"""

import triton
import triton.language as tl

# A side is the tuple that `_Side.arguments()` of gpu.py makes, where the fields are explained. By their places:
# 0 outer, 1 inner_count, 2 inner, 3 item, 4 point, 5 row, 6 rows, 7 columns, 8 ahead, 9 of, 10 means.


@triton.jit
def _butterfly(x, GROUPS: tl.constexpr, HALF: tl.constexpr):
    # (a, b) -> (a + b, a - b). The sum of both bit patterns less one's own is the other's: exact, a register's name
    # where both are in one thread and one shuffle where they are in two. (The interpreter's sum has 64 bits: cast.)
    pairs = tl.reshape(x, [GROUPS, 2, HALF])
    both = tl.sum(pairs.to(tl.uint32, bitcast=True), axis=1, keep_dims=True).to(tl.int32)
    other = (both - pairs.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    sign = (1 - 2 * tl.arange(0, 2)).to(tl.float32)
    return sign[None, :, None] * pairs + other


@triton.jit
def _hadamard(x, ITEMS: tl.constexpr, P: tl.constexpr, LOG2_P: tl.constexpr):
    # Each row of (ITEMS, P) times the Hadamard matrix.
    for k in tl.static_range(LOG2_P):
        x = tl.reshape(_butterfly(x, ITEMS * P // (2 << k), 1 << k), [ITEMS, P])
    return x


@triton.jit
def _positive(x):
    return tl.where(x < 0, 0.0, x)  # keeps NaN


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))  # keeps NaN


@triton.jit
def _threshold(z, t, first, SMOOTH: tl.constexpr, KEEP_DC: tl.constexpr):
    f = _tanh(z) if SMOOTH else _sign(z)
    y = f * _positive(tl.abs(z) - t)
    return tl.where(first, z, y) if KEEP_DC else y


@triton.jit
def _threshold_gradient(z, t, g, first, SMOOTH: tl.constexpr, KEEP_DC: tl.constexpr):
    # For the gradient g of the value: those of z and of t.
    e = tl.abs(z) - t
    f = _tanh(z) if SMOOTH else _sign(z)
    passed = tl.where(e <= 0, 0.0, f)
    dz = g * ((1.0 - f * f) * _positive(e) + tl.abs(passed)) if SMOOTH else g * (passed * f)
    dt = -g * passed
    if KEEP_DC:
        dz, dt = tl.where(first, g, dz), tl.where(first, 0.0, dt)
    return dz, dt


@triton.jit
def _locate(tile, tiles, tiles_per_group, items, side, P: tl.constexpr, ITEMS: tl.constexpr):
    # Offset of a tile's first item, and which items there are.
    group, start = tile // tiles_per_group, tile % tiles_per_group * ITEMS
    base = (group // side[1]).to(tl.int64) * side[0] + (group % side[1]).to(tl.int64) * side[2]
    here = start + tl.arange(0, ITEMS) < tl.where(tile < tiles, items, 0)
    return base + start.to(tl.int64) * side[3], here[:, None]


@triton.jit
def _start(b, side, P: tl.constexpr):
    # The first point of block b.
    return ((b * P + tl.zeros([], tl.int64)) * side[8] // side[9]).to(tl.int32)


@triton.jit
def _points(b, side, here, P: tl.constexpr, WIDTH: tl.constexpr, ITEMS: tl.constexpr):
    # Offsets within a tile, and which of them are neither padding nor beyond the last item.
    p = tl.arange(0, P)
    row, column = p // WIDTH, _start(b, side, P) + p % WIDTH
    offsets = tl.arange(0, ITEMS)[:, None] * side[3] + (row * side[5] + column // side[10] * side[4])[None, :]
    exist = (row < side[6]) & (column < side[7])
    return offsets, here & exist[None, :]


@triton.jit
def _load(x, base, b, side, here, P: tl.constexpr, WIDTH: tl.constexpr, ITEMS: tl.constexpr):
    offsets, mask = _points(b, side, here, P, WIDTH, ITEMS)
    return tl.load(x + base + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(y, values, base, b, side, here, P: tl.constexpr, WIDTH: tl.constexpr, ITEMS: tl.constexpr):
    offsets, mask = _points(b, side, here, P, WIDTH, ITEMS)
    tl.store(y + base + offsets, values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _thresholds(t, b, P: tl.constexpr, STEP: tl.constexpr, CLAMP: tl.constexpr):
    values = tl.load(t + b * STEP + tl.arange(0, P))
    return (_positive(values) if CLAMP else values)[None, :]


@triton.jit
def _weights(v, b, P: tl.constexpr, STEP: tl.constexpr, HAS_V: tl.constexpr):
    if HAS_V:
        return tl.load(v + b * STEP + tl.arange(0, P))[None, :]
    return tl.full([1, P], 1.0, tl.float32)


@triton.jit
def forward(
    x,
    y,
    t,
    v,
    tiles,
    tiles_per_group,
    items,
    side_in,
    side_y,
    blocks,
    narrow,
    forth,
    back,
    P: tl.constexpr,
    LOG2_P: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    SMOOTH: tl.constexpr,
    KEEP_DC: tl.constexpr,
    CLAMP: tl.constexpr,
    HAS_V: tl.constexpr,
    EXPAND: tl.constexpr,
):
    """One tile and one block of the narrow side; a grid of ``tiles · narrow`` programs."""
    j, tile = tl.program_id(0) % narrow, tl.program_id(0) // narrow
    base_in, here = _locate(tile, tiles, tiles_per_group, items, side_in, P, ITEMS)
    base_y, _ = _locate(tile, tiles, tiles_per_group, items, side_y, P, ITEMS)
    first = (tl.arange(0, P) == 0)[None, :]
    if EXPAND:
        z = _hadamard(_load(x, base_in, j, side_in, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * forth
        for b in range(j, blocks, narrow):
            values = z * _weights(v, b, P, STEP, HAS_V)
            values = _threshold(values, _thresholds(t, b, P, STEP, CLAMP), first, SMOOTH, KEEP_DC) * back
            _store(y, _hadamard(values, ITEMS, P, LOG2_P), base_y, b, side_y, here, P, WIDTH, ITEMS)
    else:
        total = tl.zeros([ITEMS, P], tl.float32)
        for b in range(j, blocks, narrow):
            z = _hadamard(_load(x, base_in, b, side_in, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * forth
            z = z * _weights(v, b, P, STEP, HAS_V)
            total += _threshold(z, _thresholds(t, b, P, STEP, CLAMP), first, SMOOTH, KEEP_DC) * back
        _store(y, _hadamard(total, ITEMS, P, LOG2_P), base_y, j, side_y, here, P, WIDTH, ITEMS)


@triton.jit
def backward(
    x,
    gy,
    gx,
    t,
    v,
    sums_t,
    sums_v,
    tiles,
    tiles_per_group,
    items,
    side_in,
    side_gy,
    side_gx,
    blocks,
    narrow,
    forth,
    back,
    steps,
    P: tl.constexpr,
    LOG2_P: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    SMOOTH: tl.constexpr,
    KEEP_DC: tl.constexpr,
    CLAMP: tl.constexpr,
    HAS_V: tl.constexpr,
    EXPAND: tl.constexpr,
    HAS_GX: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """``steps`` tiles (1 unless ``PAIRED``) and one block of the narrow side.

    ``sums_t`` and ``sums_v`` ``(programs / narrow, blocks, P)`` take what a program adds up; the caller adds the rows,
    so that the sums come out the same in every run.
    """
    j, part = tl.program_id(0) % narrow, tl.program_id(0) // narrow
    p = tl.arange(0, P)
    first = (p == 0)[None, :]
    dt_total = tl.zeros([ITEMS, P], tl.float32)
    dv_total = tl.zeros([ITEMS, P], tl.float32)
    for step in range(steps):
        tile = part * steps + step
        base_in, here = _locate(tile, tiles, tiles_per_group, items, side_in, P, ITEMS)
        base_gy, _ = _locate(tile, tiles, tiles_per_group, items, side_gy, P, ITEMS)
        base_gx, _ = _locate(tile, tiles, tiles_per_group, items, side_gx, P, ITEMS)
        if EXPAND:
            z = _hadamard(_load(x, base_in, j, side_in, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * forth
            dz_total = tl.zeros([ITEMS, P], tl.float32)
        else:
            g = _hadamard(_load(gy, base_gy, j, side_gy, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * back
        for b in range(j, blocks, narrow):
            if EXPAND:
                g = _hadamard(_load(gy, base_gy, b, side_gy, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * back
            else:
                z = _hadamard(_load(x, base_in, b, side_in, here, P, WIDTH, ITEMS), ITEMS, P, LOG2_P) * forth
            threshold = _thresholds(t, b, P, STEP, CLAMP)
            w = _weights(v, b, P, STEP, HAS_V)
            dz, dt = _threshold_gradient(z * w, threshold, g, first, SMOOTH, KEEP_DC)
            if PAIRED:
                dt_total += dt
            else:
                tl.store(sums_t + (part * blocks + b).to(tl.int64) * P + p, tl.sum(dt, axis=0))
            if HAS_V:
                if PAIRED:
                    dv_total += dz * z
                else:
                    tl.store(sums_v + (part * blocks + b).to(tl.int64) * P + p, tl.sum(dz * z, axis=0))
            if EXPAND:
                dz_total += dz * w
            elif HAS_GX:
                values = _hadamard(dz * (w * forth), ITEMS, P, LOG2_P)
                _store(gx, values, base_gx, b, side_gx, here, P, WIDTH, ITEMS)
        if EXPAND and HAS_GX:
            values = _hadamard(dz_total * forth, ITEMS, P, LOG2_P)
            _store(gx, values, base_gx, j, side_gx, here, P, WIDTH, ITEMS)
    if PAIRED:
        tl.store(sums_t + (part * blocks + j).to(tl.int64) * P + p, tl.sum(dt_total, axis=0))
        if HAS_V:
            tl.store(sums_v + (part * blocks + j).to(tl.int64) * P + p, tl.sum(dv_total, axis=0))


@triton.jit
def fold(
    wide,
    y,
    tiles,
    tiles_per_group,
    items,
    side_wide,
    side,
    parts,
    terms,
    P: tl.constexpr,
    ITEMS: tl.constexpr,
    WINDOWS: tl.constexpr,
):
    """P points of one tile of ``y`` from blocks side by side in ``wide``; a grid of ``tiles · parts`` programs.

    Sums of ``terms`` numbers: of what all ``terms`` windows have at a point, or of successive points.
    """
    j, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    base_wide, here = _locate(tile, tiles, tiles_per_group, items, side_wide, P, ITEMS)
    base, _ = _locate(tile, tiles, tiles_per_group, items, side, P, ITEMS)
    item, c = tl.arange(0, ITEMS)[:, None], (j * P + tl.arange(0, P))[None, :]
    here = here & (c * side[10] < side[7])
    total = tl.zeros([ITEMS, P], tl.float32)
    for k in range(terms):
        if WINDOWS:
            p = c - _start(k, side, P)
            at, exist = k * P + p, here & (p >= 0) & (p < P)
        else:
            at, exist = c * terms + k, here
        total += tl.load(wide + base_wide + (item * side_wide[3] + at * side_wide[4]), mask=exist, other=0.0)
    tl.store(y + base + (item * side[3] + c * side[4]), total.to(y.dtype.element_ty), mask=here)
