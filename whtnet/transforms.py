"""Walsh-Hadamard transforms in plain PyTorch: the readable reference that every fast path is held against.

The transform is orthonormal, ``H_n / sqrt(n)`` with Sylvester's matrix ``H_n``, and so its own inverse. It is
computed in its Kronecker form: ``H_1024 = H_32 ⊗ H_32`` makes two small matrix products of one large one.
"""

import math

import torch
from torch import Tensor

ORDERS = ("natural", "sequency")

# Factors of H up to this size are applied as one matrix product. 32 keeps the matrix in the first-level cache and
# transforms 1024 points, the paper's largest size, in two products.
_MAX_FACTOR = 32

# Asking about autocast raises for other devices (meta, say); asking torch which have it breaks torch 2.11's compiler.
_AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")

_factor_cache: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def next_power_of_two(n: int) -> int:
    """Smallest power of two that is at least ``n`` (``n >= 1``)."""
    return 1 << (n - 1).bit_length()


def is_power_of_two(n: int) -> bool:
    """Whether ``n`` is one of 1, 2, 4, 8 and so on."""
    return n > 0 and n & (n - 1) == 0


def hadamard_matrix(
    n: int,
    order: str = "natural",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Hadamard matrix of size ``n``, with entries ±1 (not scaled).

    Args:
        n: a power of two.
        order: ``"natural"`` is Sylvester's construction; in ``"sequency"`` (Walsh) order row k has k sign changes.
        dtype: element type; torch's default if None.
        device: where the matrix is made.

    Returns:
        ``(n, n)`` symmetric matrix H with ``H @ H = n·I``.

    Raises:
        ValueError: if ``n`` is no power of two, or the order is unknown.
    """
    _check_size(n)
    _check_order(order)
    index = torch.arange(n, device=device)
    parity = index[:, None] & index[None, :]
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    matrix = (1 - 2 * (parity & 1)).to(dtype or torch.get_default_dtype())
    return matrix[sequency_permutation(n, device=device)] if order == "sequency" else matrix


def sequency_permutation(n: int, *, device: torch.device | str | None = None) -> Tensor:
    """Indices that bring natural-order coefficients into sequency order: ``walsh[k] = natural[permutation[k]]``.

    Row i of Sylvester's matrix is row ``gray⁻¹(bitreverse(i))`` when rows are counted by their sign changes; read the
    other way round, sequency k comes from row ``bitreverse(k ^ (k >> 1))``. Index 0, the DC coefficient, stays put.

    Raises:
        ValueError: if ``n`` is no power of two.
    """
    _check_size(n)
    index = torch.arange(n, device=device)
    gray = index ^ (index >> 1)
    permutation = torch.zeros_like(index)
    for _ in range(n.bit_length() - 1):
        permutation = (permutation << 1) | (gray & 1)
        gray = gray >> 1
    return permutation


def released_order(n: int, *, device: torch.device | str | None = None) -> Tensor:
    """Indices that bring coefficients from the BWHT authors' order into natural order.

    ``natural[i] = theirs[order[i]]``. Their code puts row i of Sylvester's matrix at row ``gray(bitreverse(i))``,
    gray(j) = j ^ (j >> 1). That is sequency order only up to n = 4. Index 0, the DC coefficient, stays put.

    Raises:
        ValueError: if ``n`` is no power of two.
    """
    _check_size(n)
    index = torch.arange(n, device=device)
    reversed_bits = torch.zeros_like(index)
    for _ in range(n.bit_length() - 1):
        reversed_bits = (reversed_bits << 1) | (index & 1)
        index = index >> 1
    return reversed_bits ^ (reversed_bits >> 1)


def fwht(x: Tensor, dim: int = -1, order: str = "natural") -> Tensor:
    """Orthonormal fast Walsh-Hadamard transform along one dimension.

    Equals ``torch.nn.functional.linear(x, hadamard_matrix(n) / sqrt(n))`` for ``dim=-1``. Autocast does not change its
    precision: the result has the input's dtype. (Call ``backward`` outside of autocast, as PyTorch advises; inside, the
    gradient is computed in the low precision. A GPU that is allowed TF32 uses it here too.)

    Args:
        x: floating-point tensor of any shape, whose size n along ``dim`` is a power of two.
        dim: the dimension to transform.
        order: order of the coefficients, ``"natural"`` or ``"sequency"``. Both are their own inverse, since the Walsh
            matrix is symmetric in either order; :func:`ifwht` states the direction where it helps a reader.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: if n is no power of two, or the order is unknown.
        TypeError: if ``x`` is not a floating-point tensor.
    """
    if not x.is_floating_point():
        raise TypeError(f"fwht takes a floating-point tensor, got {x.dtype}; convert it with .float()")
    _check_order(order)
    dim = _wrap_dim(dim, x.dim())
    n = int(x.shape[dim])  # torch.jit.trace gives a tensor
    _check_size(n)
    kind = x.device.type
    if kind in _AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            y = _kronecker_fwht(x, dim, n)
    else:
        y = _kronecker_fwht(x, dim, n)
    return y.index_select(dim, sequency_permutation(n, device=x.device)) if order == "sequency" else y


def ifwht(x: Tensor, dim: int = -1, order: str = "natural") -> Tensor:
    """Inverse of :func:`fwht` for coefficients in the same ``order``; takes and raises the same."""
    return fwht(x, dim, order)


def fwht2(x: Tensor, dim: tuple[int, int] = (-2, -1), order: str = "natural") -> Tensor:
    """Orthonormal two-dimensional Walsh-Hadamard transform: :func:`fwht` along both dimensions of ``dim``."""
    return fwht(fwht(x, dim[0], order), dim[1], order)


def _kronecker_fwht(x: Tensor, dim: int, n: int) -> Tensor:
    # Around the dimension the tensor is (before, n, after); a factor f of n turns that into a batch of products
    # H_f @ (f, stride·after), which reads and writes the memory in order whatever the dimension is.
    shape = x.shape
    before, after = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    remaining = n
    while remaining > 1:
        f = min(remaining, _MAX_FACTOR)
        remaining //= f
        matrix = _orthonormal_factor(f, x.dtype, x.device)
        groups, columns = before * (n // (f * remaining)), remaining * after
        x = x.reshape(groups, f) @ matrix if columns == 1 else matrix @ x.reshape(groups, f, columns)
    return x.reshape(shape) if n > 1 else x.clone()


def _orthonormal_factor(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Built once per size. Tensors made while a program is traced, a dispatch mode is active (fake tensors, say) or
    # torch.func transforms a function belong to that context and must not outlive it: there it is built in place.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or torch._C._len_torch_dispatch_stack() > 0 or _in_torch_func():
        return _build_factor(n, dtype, device)
    key = (n, dtype, device)
    if key not in _factor_cache:
        with torch.inference_mode(False):
            _factor_cache[key] = _build_factor(n, dtype, device)
    return _factor_cache[key]


def _in_torch_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _build_factor(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "meta":  # where only the shape is there
        return torch.empty(n, n, dtype=dtype, device=device)
    return hadamard_matrix(n, dtype=dtype, device=device) / math.sqrt(n)


def _wrap_dim(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise IndexError(f"dimension {dim} is out of range for a tensor with {ndim} dimensions")
    return dim % ndim


def _check_size(n: int) -> None:
    if not is_power_of_two(n):
        raise ValueError(
            f"a Walsh-Hadamard transform needs a power-of-two size, got {n}; "
            "zero-pad to the next one, or divide the dimension into blocks"
        )


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; choose one of {', '.join(ORDERS)}")
