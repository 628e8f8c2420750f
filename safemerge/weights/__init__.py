"""Checkpoints: lazy safetensors, fingerprints, agreement checks, LoRA as dense weights."""

from safemerge.cache import cache_dir
from safemerge.weights.adapter import AdapterCheckpoint, is_adapter, open_checkpoint
from safemerge.weights.agreement import check_agreement, check_finite, dtype_name, is_finite
from safemerge.weights.checkpoint import Checkpoint, DenseCheckpoint, layer_of
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.shared_vocabulary import VocabularyView, share_vocabulary
from safemerge.weights.statistics import ModelStatistics, TensorStatistics
from safemerge.weights.vocabulary import vocabulary

__all__ = [
    "AdapterCheckpoint",
    "Checkpoint",
    "DenseCheckpoint",
    "ModelStatistics",
    "TensorStatistics",
    "VocabularyView",
    "cache_dir",
    "check_agreement",
    "check_finite",
    "dtype_name",
    "fingerprint",
    "is_adapter",
    "is_finite",
    "layer_of",
    "open_checkpoint",
    "share_vocabulary",
    "vocabulary",
]
