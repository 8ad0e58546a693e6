"""What the stages of a transport found, one field a stage: the record, the page and the card are made of it."""

from dataclasses import dataclass

from gradfix.alignment import Aligned
from gradfix.alignment.source import SourceRun
from gradfix.evaluation.binding import Rows
from gradfix.evaluation.certificate import Certificate
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.judgement import Judgement
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import TransportRecipe
from gradfix.recipes.settings import SelectionSettings
from gradfix.transport.checks import Findings, Models
from gradfix.transport.decision import Decision
from gradfix.transport.inputs import Data


@dataclass(frozen=True)
class TransportRun:
    """One transport, before its weights are written.

    Attributes:
        recipe: The options.
        settings: The numbers of the selection.
        models: The three models.
        found: What the checks found.
        data: The rows.
        model: θ_B with its task.
        support: The chosen samples.
        source: What was seen of the source; None where nobody looked.
        aligned: The alignment; None without one.
        decision: What is added, and how it was found.
        certificate: On the support set.
        judgement: On held-out data; None without any.
        untruncated: What δ gives there before an adapter was extracted from it; None where none was.
    """

    recipe: TransportRecipe
    settings: SelectionSettings
    models: Models
    found: Findings
    data: Data
    model: TargetModel
    support: Rows
    source: SourceRun | None
    aligned: Aligned | None
    decision: Decision
    certificate: Certificate
    judgement: Judgement | None
    untruncated: Evaluation | None = None
