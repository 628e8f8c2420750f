"""Singular vectors kept between candidates: what matrix methods need of their ingredients.

References:
    Gargiulo et al., Task Singular Vectors, arXiv:2412.00081.
"""

from threading import Lock
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor

from safemerge.errors import MergeError

DEFAULT_CACHE_BYTES = 2 * 2**30
"""Memory that singular vectors may take in one process, 2 GiB."""


class Spectrum(NamedTuple):
    """A matrix as U diag(values) V: singular triplets, largest first."""

    left: Float32[Tensor, "rows rank"]
    values: Float32[Tensor, "rank"]
    right: Float32[Tensor, "rank columns"]

    def matrix(self) -> Float32[Tensor, "rows columns"]:
        """Return the matrix."""
        return (self.left * self.values) @ self.right

    @property
    def num_bytes(self) -> int:
        """Memory that the triplets take."""
        return sum(part.numel() * part.element_size() for part in self)


@runtime_checkable
class KeptSpectra(Protocol):
    """Singular triplets on disk; see `derived`."""

    def spectra(self, what: tuple[str, ...], tensor: str) -> tuple[Spectrum, ...] | None:
        """Return triplets by method and experts, None if there are none."""
        ...

    def put_spectra(
        self, what: tuple[str, ...], tensor: str, spectra: tuple[Spectrum, ...]
    ) -> None:
        """Keep triplets."""
        ...


class SpectrumCache:
    """Singular triplets by (what, tensor), so that the next candidate need not decompose.

    A cache belongs to one set of checkpoints: names must mean the same weights throughout. When
    it is full, new entries are not taken in: candidates read tensors in a fixed order, and to
    drop the least recently used entry would then drop each just before its use. Safe to share
    among threads.

    Args:
        max_bytes: Memory that the entries may take.
        kept: Where entries are kept for other processes; None for nowhere.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_CACHE_BYTES, *, kept: KeptSpectra | None = None
    ) -> None:
        self._max_bytes = max_bytes
        self._kept = kept
        self._num_bytes = 0
        self._entries: dict[tuple[tuple[str, ...], str], tuple[Spectrum, ...]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Memory that the entries take."""
        return self._num_bytes

    def get(
        self, what: tuple[str, ...], tensor: str, *, device: torch.device | str
    ) -> tuple[Spectrum, ...] | None:
        """Return what a method holds for some experts and a tensor, None for nothing.

        `what` is the method's name and then the experts' names; what is kept on disk is read to
        the CPU, and given and held on `device`.
        """
        with self._lock:
            held = self._entries.get((what, tensor))
        if held is None and self._kept is not None:
            held = self._kept.spectra(what, tensor)
            if held is not None:
                held = _on(device, held)
                self._hold(what, tensor, held)
        return None if held is None else _on(device, held)

    def put(self, what: tuple[str, ...], tensor: str, spectra: tuple[Spectrum, ...]) -> None:
        """Hold spectra, if there is room, and keep them for other processes."""
        self._hold(what, tensor, spectra)
        if self._kept is not None:
            self._kept.put_spectra(what, tensor, spectra)

    def _hold(self, what: tuple[str, ...], tensor: str, spectra: tuple[Spectrum, ...]) -> None:
        size = sum(spectrum.num_bytes for spectrum in spectra)
        with self._lock:
            if (what, tensor) not in self._entries and self._num_bytes + size <= self._max_bytes:
                self._entries[what, tensor] = spectra
                self._num_bytes += size


def _on(device: torch.device | str, spectra: tuple[Spectrum, ...]) -> tuple[Spectrum, ...]:
    """Return spectra on a device; those that are there already are not copied."""
    return tuple(Spectrum(*(part.to(device) for part in spectrum)) for spectrum in spectra)


def decompose(matrix: Float32[Tensor, "rows columns"], *, where: str = "matrix") -> Spectrum:
    """Return the singular triplets of a matrix down to its numerical rank.

    Triplets whose value is at most ``max(rows, columns) * eps * largest`` (eps of float32) are
    rounding errors whose directions mean nothing, and are left out; a zero matrix has none.

    Args:
        matrix: Any matrix with finite entries.
        where: Place named in messages.

    Returns:
        Triplets, largest value first.

    Raises:
        MergeError: If an entry is not finite, or the decomposition does not converge.
    """
    if not bool(torch.isfinite(matrix).all()):
        count = int(matrix.numel() - torch.isfinite(matrix).sum())
        raise MergeError(
            f"{where}: entries must be finite; got {count} NaN or infinite of "
            f"{matrix.numel()}. Check the checkpoint."
        )
    if matrix.numel() == 0 or not bool(matrix.any()):
        rows, columns = matrix.shape
        return Spectrum(
            matrix.new_zeros(rows, 0), matrix.new_zeros(0), matrix.new_zeros(0, columns)
        )
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:
        raise MergeError(
            f"{where}: the singular value decomposition must converge; got: {error}. "
            f"Check the checkpoint."
        ) from error
    limit = max(matrix.shape) * torch.finfo(torch.float32).eps * float(values[0])
    rank = int((values > limit).sum())
    return Spectrum(left[:, :rank].contiguous(), values[:rank].clone(), right[:rank].contiguous())


def leading(spectrum: Spectrum, count: int) -> Spectrum:
    """Return the largest `count` triplets of a spectrum, or all it has."""
    left, values, right = spectrum
    return Spectrum(left[:, :count], values[:count], right[:count])


def nearest_orthonormal(
    matrix: Float32[Tensor, "rows columns"], *, where: str = "matrix"
) -> Float32[Tensor, "rows columns"]:
    """Return the nearest matrix with orthonormal columns (or rows): P Q of P S Q.

    Args:
        matrix: A matrix with finite entries; not zero, or empty.
        where: Place named in messages.

    Returns:
        The orthogonal factor of the polar decomposition, over the numerical rank.

    References:
        Schonemann 1966 (orthogonal Procrustes problem), as in arXiv:2412.00081, section 4.2.
    """
    left, _, right = decompose(matrix, where=where)
    return left @ right
