"""What a sample, its loss and its metric are.

The tasks on transformers models are made by name::

    task = get_task("text-classification", text="sentence")   # the columns of the data, by role
    task.bind(directory)                                      # tokenizer, context length, label names
    model = task.load_model(directory)                        # an nn.Module in eval mode
    task.prepare(model)                                       # zero-shot: class weights from the text tower
    task.check(rows, support=True)                            # refuse unusable rows before anything heavy
    batch = task.encode(rows)                                 # tensors, first dimension = sample
    task.loss(model, batch)                                   # [B] float32, differentiable
    task.measure(model, batch)                                # losses, scores, predictions: one forward pass

Models that transformers does not know take part by `CustomTask`, which is made from functions. To be evaluated, any
object with ``name``, ``metric``, ``encode``, ``loss``, ``measure`` and ``size`` will do: it is a `Task`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from gradfix.errors import GradfixError, option
from gradfix.plugins import find, is_plugin
from gradfix.tasks.base import TASKS, Batch, Measured, ModelTask, Task
from gradfix.tasks.causal_lm import CausalLM
from gradfix.tasks.classification import Classification
from gradfix.tasks.custom import CustomTask
from gradfix.tasks.forward import evaluating
from gradfix.tasks.generation import Generative
from gradfix.tasks.headed import Headed, HeadedClassification
from gradfix.tasks.image_classification import ImageClassification
from gradfix.tasks.labelled import Labelled
from gradfix.tasks.labels import Labels, label_names
from gradfix.tasks.language_model import LanguageModel
from gradfix.tasks.multi_label import MultiLabelClassification
from gradfix.tasks.preferences import PreferencePairs
from gradfix.tasks.probe import Probe, fit_probe
from gradfix.tasks.question_answering import QuestionAnswering
from gradfix.tasks.regression import Regression
from gradfix.tasks.sentence_embeddings import SentenceEmbeddings
from gradfix.tasks.text_classification import TextClassification
from gradfix.tasks.text_to_text import TextToText
from gradfix.tasks.token_classification import TokenClassification
from gradfix.tasks.vision_libraries import OpenClip, Timm
from gradfix.tasks.zero_shot import ZeroShotImageClassification

__all__ = [
    "TASKS",
    "Batch",
    "CausalLM",
    "Classification",
    "CustomTask",
    "Generative",
    "Headed",
    "HeadedClassification",
    "ImageClassification",
    "Labelled",
    "Labels",
    "LanguageModel",
    "Measured",
    "ModelTask",
    "MultiLabelClassification",
    "OpenClip",
    "PreferencePairs",
    "Probe",
    "QuestionAnswering",
    "Regression",
    "SentenceEmbeddings",
    "Task",
    "TextClassification",
    "TextToText",
    "Timm",
    "TokenClassification",
    "ZeroShotImageClassification",
    "evaluating",
    "fit_probe",
    "get_task",
    "label_names",
]


def get_task(name: str, **options: Any) -> ModelTask:
    """Make a task by name.

    Args:
        name: One of `TASKS`, or a function or class of the user's own that makes a task, as
            :func:`gradfix.plugins.find` takes it.
        **options: The task's own: columns by role, ``labels``, ``max_length`` …

    Returns:
        The task, not bound to a model yet.

    Raises:
        GradfixError: If there is no such task, or it has no such option.
    """
    kind: Callable[..., Any]
    if name in TASKS:
        kind = TASKS[name]
        known = inspect.signature(kind).parameters
    elif is_plugin("task", name):
        kind = find("task", name)
        known = inspect.signature(kind.function).parameters
    else:
        raise GradfixError(
            f"unknown task {name!r}; expected one of {', '.join(sorted(TASKS))}; or a function of yours that makes a "
            "task, as module:function; or an object in Python, as gf.transport(task=…)"
        )
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for given in sorted(options.keys() - known.keys()) if not anything else ():
        if given in _OPTIONS:
            takers = [one for one, task in TASKS.items() if given in inspect.signature(task).parameters]
            raise GradfixError(
                f"task {name}: takes no {option(_OPTIONS[given], python=given)}; leave it out ({', '.join(takers)} "
                f"take{'s' * (len(takers) == 1)} it)"
            )
        roles = [role for role, parameter in known.items() if parameter.kind is not parameter.KEYWORD_ONLY]
        raise GradfixError(
            f"task {name}: has no column of the role {given!r}; the roles are {', '.join(roles) or 'none'}"
        )
    task = kind(**options)
    if not isinstance(task, ModelTask):
        raise GradfixError(
            f"task {name}: made a {type(task).__name__}; expected a task, such as gf.CustomTask or a subclass of "
            "gradfix.tasks.TextClassification"
        )
    return task


_OPTIONS = {
    "labels": "label",
    "candidates": "candidate",
    "prefix": "prefix",
    "templates": "templates",
    "text_from": "text_from",
    "max_length": "max_length",
    "metric": "metric",
    "max_new_tokens": "max_new_tokens",
    "beta": "beta",
}
"""What some tasks take beside columns, with the recipe's field of each."""
