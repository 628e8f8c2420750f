"""What was derived of ingredients, kept on disk by digest: the next process need not derive it.

Kept are magnitude counts, from which any density's threshold follows, and the singular vectors
of TSV-M. Both depend on base and experts alone, not on coefficients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from safemerge.cache import BlobCache
from safemerge.config.base import digest
from safemerge.merge.spectrum import Spectrum
from safemerge.merge.threshold import MagnitudeCounts

MAX_BYTES = 8 * 2**30
"""Disk space that derived data may take, 8 GiB."""

_VERSION = 2
"""Part of every key: to be raised when what is derived changes."""


class DerivedData(NamedTuple):
    """Derived data of one set of checkpoints in the cache.

    A tensor's data is found by the digests of base and experts and by its name, so that renamed
    experts and other recipes find it too. Entries that cannot be read count as missing.
    """

    digests: Mapping[str, str]
    """Digest by expert name."""
    base: str
    """The base's digest."""
    cache: BlobCache
    check: Callable[[], None] = lambda: None
    """Refuses, before anything is kept, checkpoints that are no longer what their digests say."""

    @classmethod
    def of(
        cls,
        digests: Mapping[str, str | None],
        base_name: str,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> "DerivedData | None":
        """Return the derived data of some checkpoints.

        Args:
            digests: Digest by model name, None where it is not known.
            base_name: Which of them is the base.
            check: See the class.

        Returns:
            None where a digest is not known: nothing is kept.
        """
        known = {name: found for name, found in digests.items() if found is not None}
        if len(known) < len(digests):
            return None
        base = known.pop(base_name)
        return cls(known, base, BlobCache("derived", MAX_BYTES), check)

    def counts(self, expert: str, tensor: str) -> MagnitudeCounts | None:
        """Return the magnitude counts of an expert's tensor, None if there are none."""
        found = self._read(self._key("counts", (expert,), tensor))
        if found is None or set(found) != {"bins", "counts"}:
            return None
        return MagnitudeCounts(*(found[name].numpy() for name in ("bins", "counts")))

    def put_counts(self, expert: str, tensor: str, counts: MagnitudeCounts) -> None:
        """Keep the magnitude counts of an expert's tensor."""
        arrays = {
            name: torch.from_numpy(np.ascontiguousarray(array))
            for name, array in counts._asdict().items()
        }
        self._write(self._key("counts", (expert,), tensor), arrays)

    def spectra(self, what: tuple[str, ...], tensor: str) -> tuple[Spectrum, ...] | None:
        """Return singular triplets by method and experts, None if there are none."""
        method, *experts = what
        found = self._read(self._key(method, experts, tensor))
        names = [f"{at}.{field}" for at in range(len(experts)) for field in Spectrum._fields]
        if found is None or set(found) != set(names):
            return None
        parts = [found[name] for name in names]
        return tuple(Spectrum(*parts[at : at + 3]) for at in range(0, len(parts), 3))

    def put_spectra(
        self, what: tuple[str, ...], tensor: str, spectra: tuple[Spectrum, ...]
    ) -> None:
        """Keep singular triplets."""
        method, *experts = what
        arrays = {
            f"{at}.{field}": part.detach().cpu().contiguous().clone()
            for at, spectrum in enumerate(spectra)
            for field, part in spectrum._asdict().items()
        }
        self._write(self._key(method, experts, tensor), arrays)

    def _key(self, what: str, experts: Sequence[str], tensor: str) -> str:
        return digest(
            {
                "version": _VERSION,
                "what": what,
                "base": self.base,
                "experts": [self.digests[expert] for expert in experts],
                "tensor": tensor,
            }
        )

    def _read(self, key: str) -> dict[str, Tensor] | None:
        content = self.cache.get(key)
        if content is None:
            return None
        try:
            found: dict[str, Tensor] = load(content)
        except SafetensorError:
            return None
        return found

    def _write(self, key: str, arrays: Mapping[str, Tensor]) -> None:
        self.check()
        self.cache.put(key, save(dict(arrays)))
