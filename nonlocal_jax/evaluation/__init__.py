"""Inference by the published protocols, metrics, and pictures of what a network does."""

from nonlocal_jax.evaluation.inference import (
    inference_fn,
    inference_mesh,
    inference_protocol,
    multi_scale_inference,
    predict,
    slide_inference,
)
from nonlocal_jax.evaluation.loop import evaluate, evaluator
from nonlocal_jax.evaluation.metrics import confusion_matrix, markdown_table, summarize

__all__ = [
    "confusion_matrix",
    "evaluate",
    "evaluator",
    "inference_fn",
    "inference_mesh",
    "inference_protocol",
    "markdown_table",
    "multi_scale_inference",
    "predict",
    "slide_inference",
    "summarize",
]
