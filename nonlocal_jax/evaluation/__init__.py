"""Inference with the published protocols, and the metrics of segmentation and classification."""

from nonlocal_jax.evaluation import classification
from nonlocal_jax.evaluation.classification import average_precision, top_k_correct
from nonlocal_jax.evaluation.inference import multi_scale_inference, slide_inference
from nonlocal_jax.evaluation.metrics import confusion_matrix, markdown_table, summarize
from nonlocal_jax.evaluation.predictor import Predictor
from nonlocal_jax.evaluation.segmentation import evaluator, report
from nonlocal_jax.evaluation.videos import VideoPredictor

__all__ = [
    "Predictor",
    "VideoPredictor",
    "average_precision",
    "classification",
    "confusion_matrix",
    "evaluator",
    "markdown_table",
    "multi_scale_inference",
    "report",
    "slide_inference",
    "summarize",
    "top_k_correct",
]
