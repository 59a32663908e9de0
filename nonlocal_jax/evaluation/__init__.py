"""Inference with the published protocols, and segmentation metrics."""

from nonlocal_jax.evaluation.inference import (
    Predictor,
    inference_fn,
    multi_scale_inference,
    slide_inference,
)
from nonlocal_jax.evaluation.metrics import confusion_matrix, markdown_table, summarize
from nonlocal_jax.evaluation.segmentation import evaluator, report

__all__ = [
    "Predictor",
    "confusion_matrix",
    "evaluator",
    "inference_fn",
    "markdown_table",
    "multi_scale_inference",
    "report",
    "slide_inference",
    "summarize",
]
